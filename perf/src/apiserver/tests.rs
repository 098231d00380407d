//! The server through kube's own client: what control does with it must work as with a real one.

use std::pin::pin;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Namespace, Node, Service};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, VersionMatch, WatchEvent, WatchParams,
};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::watcher;
use kube::{Client, Config, ResourceExt};
use penstock_control::crd::{self, VipAllocation, VipPool, VipPoolSpec};
use serde_json::{Value, json};

use super::{ADMIN_TOKEN, ApiError, ApiServer, Fault, Grant, Settings};

fn server() -> ApiServer {
    ApiServer::start(Settings::default()).unwrap()
}

fn client_as(server: &ApiServer, token: &str) -> Client {
    let mut config = Config::new(server.url().parse().unwrap());
    config.auth_info.token = Some(token.to_owned().into());
    // The tests look at single answers, which kube's own retries would hide.
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

fn client(server: &ApiServer) -> Client {
    client_as(server, ADMIN_TOKEN)
}

fn services(server: &ApiServer) -> Api<Service> {
    Api::namespaced(client(server), "default")
}

fn service(name: &str) -> Service {
    serde_json::from_value(json!({"metadata": {"name": name, "labels": {"app": name}},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}}))
    .unwrap()
}

fn code<T: std::fmt::Debug>(result: Result<T, kube::Error>) -> u16 {
    match result {
        Err(kube::Error::Api(status)) => status.code,
        other => panic!("an API error was expected: {other:?}"),
    }
}

fn install(server: &ApiServer) {
    for definition in crd::definitions() {
        server.put(&serde_json::to_value(definition).unwrap()).unwrap();
    }
}

#[tokio::test]
async fn revisions_grow_over_all_kinds_and_stale_writes_conflict() {
    let server = server();
    let api = services(&server);
    let first = api.create(&PostParams::default(), &service("a")).await.unwrap();
    let nodes: Api<Node> = Api::all(client(&server));
    let node: Node = serde_json::from_value(json!({"metadata": {"name": "n"}})).unwrap();
    let node = nodes.create(&PostParams::default(), &node).await.unwrap();
    let number = |v: Option<String>| v.unwrap().parse::<u64>().unwrap();
    assert!(number(node.resource_version()) > number(first.resource_version()));
    assert!(first.uid().is_some() && first.creation_timestamp().is_some());

    let mut changed = first.clone();
    changed.labels_mut().insert("x".into(), "1".into());
    let second = api.replace("a", &PostParams::default(), &changed).await.unwrap();
    assert_eq!(code(api.replace("a", &PostParams::default(), &changed).await), 409);
    assert_eq!(code(api.create(&PostParams::default(), &service("a")).await), 409);
    // A write that changes nothing is none.
    let same = api.replace("a", &PostParams::default(), &second).await.unwrap();
    assert_eq!(same.resource_version(), second.resource_version());
    let stale = json!({"metadata": {"resourceVersion": first.resource_version(), "labels": {"y": "1"}}});
    assert_eq!(code(api.patch("a", &PatchParams::default(), &Patch::Merge(stale)).await), 409);
}

#[tokio::test]
async fn the_status_is_a_resource_of_its_own() {
    let server = server();
    let api = services(&server);
    api.create(&PostParams::default(), &service("a")).await.unwrap();
    let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1", "ipMode": "Proxy"}]}}});
    let merge = Patch::Merge(&status);
    let unchanged = api.patch("a", &PatchParams::default(), &merge).await.unwrap();
    assert_eq!(unchanged.status.unwrap().load_balancer.unwrap().ingress, None);
    api.patch_status("a", &PatchParams::default(), &merge).await.unwrap();
    let both = json!({"spec": {"sessionAffinity": "ClientIP"}, "status": {"conditions": []}});
    let patched = api.patch_status("a", &PatchParams::default(), &Patch::Merge(&both)).await.unwrap();
    assert_eq!(patched.spec.unwrap().session_affinity.unwrap(), "None");
    let ingress = patched.status.unwrap().load_balancer.unwrap().ingress.unwrap();
    assert_eq!(ingress[0].ip.as_deref(), Some("203.0.113.1"));
}

#[tokio::test]
async fn a_finalizer_is_added_and_removed_through_the_status() {
    let server = server();
    let api = services(&server);
    api.create(&PostParams::default(), &service("a")).await.unwrap();
    let add = json!({"metadata": {"finalizers": ["x.dev/y"]}});
    api.patch_status("a", &PatchParams::default(), &Patch::Strategic(&add)).await.unwrap();
    assert!(api.delete("a", &DeleteParams::default()).await.unwrap().is_left());
    let waiting = api.get("a").await.unwrap();
    assert!(waiting.metadata.deletion_timestamp.is_some());
    let more = json!({"metadata": {"finalizers": ["x.dev/z"]}});
    assert_eq!(code(api.patch_status("a", &PatchParams::default(), &Patch::Strategic(&more)).await), 422);
    let remove = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["x.dev/y"]}});
    api.patch_status("a", &PatchParams::default(), &Patch::Strategic(&remove)).await.unwrap();
    assert_eq!(api.get_opt("a").await.unwrap(), None);
}

#[tokio::test]
async fn conditions_applied_by_two_managers_live_side_by_side() {
    let server = server();
    let api = services(&server);
    api.create(&PostParams::default(), &service("a")).await.unwrap();
    let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let config = |list: &[Value]| json!({"apiVersion": "v1", "kind": "Service", "status": {"conditions": list}});
    let apply = async |by: &str, list: &[Value]| {
        let applied =
            api.patch_status("a", &PatchParams::apply(by).force(), &Patch::Apply(config(list))).await.unwrap();
        let conditions = applied.status.unwrap().conditions.unwrap_or_default();
        conditions.into_iter().map(|c| c.type_).collect::<Vec<_>>()
    };
    assert_eq!(apply("us", &[condition("a"), condition("b")]).await, ["a", "b"]);
    assert_eq!(apply("them", &[condition("c")]).await, ["a", "b", "c"]);
    assert_eq!(apply("us", &[condition("b")]).await, ["b", "c"]);
    let before = api.get("a").await.unwrap().resource_version();
    assert_eq!(apply("us", &[condition("b")]).await, ["b", "c"]);
    assert_eq!(api.get("a").await.unwrap().resource_version(), before);
    let named = json!({"apiVersion": "v1", "kind": "Service", "status": {"conditions": [
        {"type": "c", "status": "False", "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    assert_eq!(code(api.patch_status("a", &PatchParams::apply("us"), &Patch::Apply(named)).await), 409);
}

#[tokio::test]
async fn lists_come_in_pages_of_one_revision() {
    let server = server();
    let api = services(&server);
    for at in 0..5 {
        api.create(&PostParams::default(), &service(&format!("s{at}"))).await.unwrap();
    }
    let page = |token: Option<String>| ListParams { limit: Some(2), continue_token: token, ..ListParams::default() };
    let first = api.list(&page(None)).await.unwrap();
    assert_eq!((first.items.len(), first.metadata.remaining_item_count), (2, Some(3)));
    api.delete("s3", &DeleteParams::default()).await.unwrap();
    let second = api.list(&page(first.metadata.continue_.clone())).await.unwrap();
    assert_eq!(second.items[1].name_any(), "s3");
    assert_eq!(second.metadata.resource_version, first.metadata.resource_version);
    let last = api.list(&page(second.metadata.continue_.clone())).await.unwrap();
    assert_eq!((last.items.len(), last.metadata.continue_), (1, None));
    server.compact();
    assert_eq!(code(api.list(&page(second.metadata.continue_)).await), 410);
    let selected = api.list(&ListParams::default().labels("app in (s1,s2)").fields("metadata.name!=s2")).await.unwrap();
    assert_eq!(selected.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["s1"]);
}

#[tokio::test]
async fn a_list_at_a_revision_shows_the_past_until_it_is_forgotten() {
    let server = server();
    let api = services(&server);
    let created = api.create(&PostParams::default(), &service("a")).await.unwrap();
    api.delete("a", &DeleteParams::default()).await.unwrap();
    let version = created.resource_version().unwrap();
    let exact = ListParams::default().at(&version).matching(VersionMatch::Exact);
    assert_eq!(api.list(&exact).await.unwrap().items.len(), 1);
    server.compact();
    assert_eq!(code(api.list(&exact).await), 410);
}

#[tokio::test]
async fn a_watch_tells_changes_and_bookmarks_and_ends_by_time() {
    let server =
        ApiServer::start(Settings { bookmark_every: Duration::from_millis(20), ..Settings::default() }).unwrap();
    let api = services(&server);
    let a = api.create(&PostParams::default(), &service("a")).await.unwrap();
    let params = WatchParams::default().labels("app=b").timeout(1);
    let mut events = pin!(api.watch(&params, &a.resource_version().unwrap()).await.unwrap());
    let b = api.create(&PostParams::default(), &service("b")).await.unwrap();
    let relabel = |to: &str| Patch::Merge(json!({"metadata": {"labels": {"app": to}}}));
    api.patch("a", &PatchParams::default(), &relabel("b")).await.unwrap();
    api.patch("b", &PatchParams::default(), &relabel("c")).await.unwrap();
    let mut seen = Vec::new();
    let mut bookmarked = 0;
    while let Some(event) = events.try_next().await.unwrap() {
        match event {
            WatchEvent::Added(o) => seen.push(format!("+{}", o.name_any())),
            WatchEvent::Modified(o) => seen.push(format!("~{}", o.name_any())),
            WatchEvent::Deleted(o) => seen.push(format!("-{}", o.name_any())),
            WatchEvent::Bookmark(mark) => bookmarked = mark.metadata.resource_version.parse::<u64>().unwrap(),
            WatchEvent::Error(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(seen, ["+b", "+a", "-b"]);
    assert!(bookmarked > b.resource_version().unwrap().parse().unwrap());
}

#[tokio::test]
async fn what_is_forgotten_is_gone_in_both_forms() {
    let server = server();
    let api = services(&server);
    let old = api.create(&PostParams::default(), &service("a")).await.unwrap().resource_version().unwrap();
    server.compact();
    let mut events = pin!(api.watch(&WatchParams::default(), &old).await.unwrap());
    let event = events.try_next().await.unwrap();
    assert!(matches!(&event, Some(WatchEvent::Error(e)) if e.code == 410), "{event:?}");
    assert!(events.try_next().await.unwrap().is_none());
    server.gone_by_http(true);
    assert_eq!(code(api.watch(&WatchParams::default(), &old).await.map(|_| ())), 410);
}

#[tokio::test]
async fn a_running_watch_survives_what_makes_new_ones_fail() {
    let server = server();
    let api = services(&server);
    let at = server.revision().to_string();
    let mut events = pin!(api.watch(&WatchParams::default().timeout(5), &at).await.unwrap());
    server.compact();
    api.create(&PostParams::default(), &service("a")).await.unwrap();
    loop {
        match events.try_next().await.unwrap().unwrap() {
            WatchEvent::Added(object) => break assert_eq!(object.name_any(), "a"),
            WatchEvent::Bookmark(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn kubes_watcher_lives_on_it_with_lists_and_with_streams() {
    for streaming_lists in [false, true] {
        let server = ApiServer::start(Settings { streaming_lists, ..Settings::default() }).unwrap();
        let api = services(&server);
        for name in ["a", "b", "c"] {
            api.create(&PostParams::default(), &service(name)).await.unwrap();
        }
        let config = watcher::Config::default().page_size(2);
        let config = if streaming_lists { config.streaming_lists() } else { config };
        let mut events = pin!(watcher(api.clone(), config));
        let mut known = 0;
        loop {
            match events.try_next().await.unwrap().unwrap() {
                watcher::Event::InitApply(_) => known += 1,
                watcher::Event::InitDone => break,
                _ => {}
            }
        }
        assert_eq!(known, 3);
        api.delete("b", &DeleteParams::default()).await.unwrap();
        let event = events.try_next().await.unwrap().unwrap();
        assert!(matches!(&event, watcher::Event::Delete(o) if o.name_any() == "b"), "{event:?}");
    }
}

#[tokio::test]
async fn streams_of_initial_events_are_refused_where_they_are_off() {
    let server = server();
    let result = services(&server).watch(&WatchParams::default().initial_events(), "0").await.map(|_| ());
    assert_eq!(code(result), 422);
}

#[tokio::test]
async fn our_own_kinds_work_and_are_checked() {
    let server = server();
    install(&server);
    let definitions: Api<CustomResourceDefinition> = Api::all(client(&server));
    let crd = definitions.get("vippools.penstock.dev").await.unwrap();
    assert!(crd.status.unwrap().conditions.unwrap().iter().any(|c| c.type_ == "Established"));

    let pools: Api<VipPool> = Api::all(client(&server));
    let spec = VipPoolSpec { addresses: vec!["203.0.113.0/28".into()], ..VipPoolSpec::default() };
    let pool = pools.create(&PostParams::default(), &VipPool::new("a", spec)).await.unwrap();
    assert_eq!(pool.metadata.generation, Some(1));
    let patch = Patch::Merge(json!({"spec": {"priority": 3, "unknown": 1}, "status": {"total": 7}}));
    let pool = pools.patch("a", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!((pool.metadata.generation, pool.spec.priority, pool.status), (Some(2), 3, None));
    let status = Patch::Merge(json!({"metadata": {"labels": {"x": "1"}}, "status": {"total": 14}}));
    let pool = pools.patch_status("a", &PatchParams::default(), &status).await.unwrap();
    assert_eq!((pool.status.as_ref().unwrap().total, pool.labels().len()), (14, 0));
    assert_eq!(pool.metadata.generation, Some(2));
    assert_eq!(code(pools.patch("a", &PatchParams::default(), &Patch::Strategic(json!({}))).await), 415);

    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("penstock.dev", "v1alpha1", "VipPool"));
    let untyped: Api<DynamicObject> = Api::all_with(client(&server), &resource);
    let bad = DynamicObject::new("b", &resource).data(json!({"spec": {"addresses": "x"}}));
    assert_eq!(code(untyped.create(&PostParams::default(), &bad).await), 422);

    let records: Api<VipAllocation> = Api::all(client(&server));
    let record: VipAllocation =
        serde_json::from_value(json!({"apiVersion": "penstock.dev/v1alpha1", "kind": "VipAllocation",
        "metadata": {"name": "203.0.113.1"}, "spec": {"address": "203.0.113.1", "owner": "k"}}))
        .unwrap();
    records.create(&PostParams::default(), &record).await.unwrap();
    assert_eq!(code(records.create(&PostParams::default(), &record).await), 409);
    assert_eq!(code(records.replace("203.0.113.1", &PostParams::default(), &record).await), 422);
}

#[tokio::test]
async fn a_lease_is_won_by_one_of_two() {
    let server = server();
    let leases: Api<Lease> = Api::namespaced(client(&server), "default");
    let lease: Lease =
        serde_json::from_value(json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "a"}})).unwrap();
    let lease = leases.create(&PostParams::default(), &lease).await.unwrap();
    let take = async |who: &str| {
        let mut lease = lease.clone();
        lease.spec.as_mut().unwrap().holder_identity = Some(who.into());
        leases.replace("l", &PostParams::default(), &lease).await
    };
    assert!(take("b").await.is_ok());
    assert_eq!(code(take("c").await), 409);
}

#[tokio::test]
async fn a_patch_that_names_another_uid_is_invalid_and_an_apply_to_nothing_a_conflict() {
    let server = server();
    let api = services(&server);
    api.create(&PostParams::default(), &service("a")).await.unwrap();
    let other = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"uid": "another"}});
    let params = PatchParams::apply("us").force();
    for patch in [Patch::Merge(&other), Patch::Strategic(&other)] {
        assert_eq!(code(api.patch_status("a", &PatchParams::default(), &patch).await), 422);
    }
    assert_eq!(code(api.patch_status("a", &params, &Patch::Apply(&other)).await), 422);
    assert_eq!(code(api.patch_status("b", &params, &Patch::Apply(&other)).await), 409);
    assert_eq!(code(api.patch_status("b", &PatchParams::default(), &Patch::Merge(&other)).await), 404);
    let mut stale = api.get("a").await.unwrap();
    stale.metadata.uid = Some("another".into());
    assert_eq!(code(api.replace("a", &PostParams::default(), &stale).await), 409);
}

#[tokio::test]
async fn what_a_typed_server_cannot_read_is_refused_and_what_it_does_not_know_dropped() {
    let server = server();
    let api = services(&server);
    let put = |value: Value| server.put(&value);
    let lease = |spec: Value| json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}, "spec": spec});
    assert!(put(lease(json!({"renewTime": "2026-01-01T00:00:00.000000Z", "leaseDurationSeconds": 1}))).is_ok());
    for (spec, code) in [
        (json!({"renewTime": "2026-01-01T00:00:00.000Z"}), 400),
        (json!({"leaseTransitions": "1"}), 400),
        (json!({"leaseDurationSeconds": 0}), 422),
        (json!({"leaseTransitions": -1}), 422),
    ] {
        assert_eq!(put(lease(spec.clone())).unwrap_err().code, code, "{spec}");
    }
    let mut odd = serde_json::to_value(service("a")).unwrap();
    odd["spec"]["ports"][0]["colour"] = json!("red");
    put(odd).unwrap();
    assert_eq!(server.get("v1", "Service", "default/a").unwrap()["spec"]["ports"][0].get("colour"), None);
    for (name, finalizer) in [("1a", "x.dev/y"), ("a.b", "x.dev/y"), ("b", "mine")] {
        let mut wrong = service(name);
        wrong.finalizers_mut().push(finalizer.into());
        assert_eq!(code(api.create(&PostParams::default(), &wrong).await), 422, "{name} {finalizer}");
    }
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "s"},
        "addressType": "IPv4", "endpoints": []});
    assert_eq!(put(slice).unwrap()["endpoints"], Value::Null, "as Go writes an empty list");
    let mut definition = serde_json::to_value(crd::definitions().remove(0)).unwrap();
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["type"] = Value::Null;
    assert_eq!(put(definition).unwrap_err().code, 422, "not structural");
}

#[tokio::test]
async fn an_event_is_what_it_was_but_for_its_series() {
    let server = server();
    let api: Api<k8s_openapi::api::events::v1::Event> = Api::namespaced(client(&server), "default");
    let event = json!({"metadata": {"name": "e"}, "eventTime": "2026-01-01T00:00:00.000000Z", "type": "Normal",
        "reason": "R", "action": "A", "note": "n", "reportingController": "penstock.dev/control",
        "reportingInstance": "box", "regarding": {"kind": "Service", "namespace": "default", "name": "a"}});
    api.create(&PostParams::default(), &serde_json::from_value(event).unwrap()).await.unwrap();
    let patch = async |patch: Value| api.patch("e", &PatchParams::default(), &Patch::Merge(patch)).await;
    let series = |count: u32| json!({"series": {"count": count, "lastObservedTime": "2026-01-01T00:00:01.000000Z"}});
    assert_eq!(code(patch(json!({"note": "another"})).await), 422);
    assert_eq!(code(patch(series(1)).await), 422);
    assert!(patch(series(2)).await.is_ok());
}

#[tokio::test]
async fn a_namespace_waits_for_finalizers_in_it() {
    let server = server();
    let namespaces: Api<Namespace> = Api::all(client(&server));
    let named: Namespace = serde_json::from_value(json!({"metadata": {"name": "shop"}})).unwrap();
    namespaces.create(&PostParams::default(), &named).await.unwrap();
    let api: Api<Service> = Api::namespaced(client(&server), "shop");
    let mut object = service("a");
    object.finalizers_mut().push("x.dev/y".into());
    api.create(&PostParams::default(), &object).await.unwrap();
    namespaces.delete("shop", &DeleteParams::default()).await.unwrap();
    assert_eq!(code(api.create(&PostParams::default(), &service("b")).await), 403);
    assert!(namespaces.get_opt("shop").await.unwrap().is_some());
    api.patch("a", &PatchParams::default(), &Patch::Merge(json!({"metadata": {"finalizers": null}}))).await.unwrap();
    assert!(namespaces.get_opt("shop").await.unwrap().is_none());
    let missing: Api<Service> = Api::namespaced(client(&server), "nowhere");
    assert_eq!(code(missing.create(&PostParams::default(), &service("a")).await), 404);
}

#[tokio::test]
async fn events_are_seen_in_both_forms() {
    let server = server();
    let new: Api<k8s_openapi::api::events::v1::Event> = Api::namespaced(client(&server), "default");
    let event = json!({"metadata": {"generateName": "e-"}, "eventTime": "2026-01-01T00:00:00.000000Z", "type": "Normal",
        "reason": "EnsuredLoadBalancer", "action": "Ensure", "note": "hello", "reportingController": "penstock.dev/control",
        "reportingInstance": "box", "regarding": {"kind": "Service", "namespace": "default", "name": "a"}});
    new.create(&PostParams::default(), &serde_json::from_value(event.clone()).unwrap()).await.unwrap();
    let old: Api<Event> = Api::namespaced(client(&server), "default");
    let listed = old.list(&ListParams::default().fields("involvedObject.name=a")).await.unwrap();
    assert_eq!(listed.items[0].message.as_deref(), Some("hello"));
    let mut wrong = event;
    wrong["action"] = json!("");
    assert_eq!(code(new.create(&PostParams::default(), &serde_json::from_value(wrong).unwrap()).await), 422);
}

#[tokio::test]
async fn faults_happen_as_often_as_wanted() {
    let server = server();
    let api = services(&server);
    api.create(&PostParams::default(), &service("a")).await.unwrap();
    server.fault(Fault::on("get", "services").name("a").times(1).refuse(ApiError::too_many_requests(1)));
    server.fault(Fault::on("get", "services").times(1).conflict());
    server.fault(Fault::on("get", "services").times(1).drop_connection());
    assert_eq!(code(api.get("a").await), 429);
    assert_eq!(code(api.get("a").await), 409);
    assert!(matches!(api.get("a").await, Err(kube::Error::HyperError(_) | kube::Error::Service(_))));
    assert!(api.get("a").await.is_ok() && server.faults_are_used_up());
    server.fault(Fault::on("create", "services").times(1).lose_answer());
    assert!(api.create(&PostParams::default(), &service("b")).await.is_err());
    assert!(api.get("b").await.is_ok());
    server.fault(Fault::on("watch", "services").times(1).gone_in_stream());
    let version = server.revision().to_string();
    let first = pin!(api.watch(&WatchParams::default(), &version).await.unwrap()).try_next().await.unwrap();
    assert!(matches!(first, Some(WatchEvent::Error(e)) if e.code == 410));
    server.fault(Fault::on("get", "").hang());
    assert!(tokio::time::timeout(Duration::from_millis(50), api.get("a")).await.is_err());
}

#[tokio::test]
async fn a_stalled_watch_is_silent_and_a_stopped_server_is_gone() {
    let server = server();
    let api = services(&server);
    let version = server.revision().to_string();
    let mut events = api.watch(&WatchParams::default().timeout(5), &version).await.unwrap().boxed();
    server.stall_watches(true);
    api.create(&PostParams::default(), &service("a")).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(50), events.next()).await.is_err());
    server.stall_watches(false);
    assert!(matches!(events.try_next().await.unwrap(), Some(WatchEvent::Added(_))));
    server.stop();
    assert!(!matches!(events.next().await, Some(Ok(_))));
    assert!(api.get("a").await.is_err());
    server.resume().unwrap();
    assert!(api.get("a").await.is_ok());
}

#[tokio::test]
async fn least_privilege_can_be_shown() {
    let server = ApiServer::start(Settings { require_token: true, ..Settings::default() }).unwrap();
    let rules = "kind: ClusterRole\nrules:\n- {apiGroups: [''], resources: [services], verbs: [get, list, watch]}\n\
                 - {apiGroups: [''], resources: [services/status], verbs: [patch]}\n";
    server.add_user("t", "system:serviceaccount:penstock-system:penstock", Some(Grant::from_manifest(rules).unwrap()));
    services(&server).create(&PostParams::default(), &service("a")).await.unwrap();
    let api: Api<Service> = Api::namespaced(client_as(&server, "t"), "default");
    let patch = Patch::Strategic(json!({"metadata": {"finalizers": ["x.dev/y"]}}));
    api.patch_status("a", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(code(api.patch("a", &PatchParams::default(), &patch).await), 403);
    assert_eq!(server.requests().last().unwrap().code, 403);
    server.rotate_token("t", "u");
    assert_eq!(code(api.get("a").await), 401);
    let anonymous: Api<Service> =
        Api::namespaced(Client::try_from(Config::new(server.url().parse().unwrap())).unwrap(), "default");
    assert_eq!(code(anonymous.get("a").await), 401);
    assert_eq!(server.count("patch", "services/status"), 1);
}

#[test]
fn the_test_itself_acts_through_the_same_checks() {
    let server = server();
    let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"},
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]}});
    let created = server.put(&object).unwrap();
    assert_eq!(created["spec"]["ports"][0]["nodePort"], 30_000);
    let mut more = object.clone();
    more["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}});
    assert_eq!(server.put(&more).unwrap()["status"]["loadBalancer"]["ingress"][0]["ipMode"], "VIP");
    let edited = server.edit("v1", "Service", "default/a", |o| o["spec"]["type"] = json!("ClusterIP")).unwrap();
    assert_eq!(edited["status"]["loadBalancer"], json!({}));
    assert_eq!(server.edit("v1", "Service", "default/a", |o| o["spec"]["ports"] = json!([])).unwrap_err().code, 422);
    assert!(server.delete("v1", "Service", "default/a").unwrap());
    assert_eq!(server.get("v1", "Service", "default/a"), None);
    assert_eq!(server.list("v1", "Namespace").len(), 2);
}
