//! What a real server's typed decoding does to the kinds that a controller writes: a field of another type is refused,
//! one that the type does not have is dropped, and a time is read by Go's layout.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::kinds::{EVENTS, LEASES, Resource, SERVICES, SLICES};
use super::object::{ApiError, list_at};

/// # Errors
/// 400 where the object cannot be one of its kind.
pub(super) fn decode(resource: &Resource, object: &mut Value) -> Result<(), ApiError> {
    for place in micro_times(resource) {
        if let Some(time) = object.pointer(place).and_then(Value::as_str).filter(|time| !is_micro_time(time)) {
            let why = format!(
                "parsing time \"{time}\" as \"2006-01-02T15:04:05.000000Z07:00\": cannot parse \"{time}\" ({place})"
            );
            return Err(ApiError::bad_request(why));
        }
    }
    match &*resource.id {
        SERVICES => of::<Service>(resource, object),
        LEASES => of::<Lease>(resource, object),
        EVENTS => of::<Event>(resource, object),
        SLICES => {
            of::<EndpointSlice>(resource, object)?;
            // Go writes an empty list without `omitempty` so.
            for field in ["endpoints", "ports"] {
                if list_at(object, &format!("/{field}")).is_empty() {
                    object[field] = Value::Null;
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn of<T: Serialize + DeserializeOwned>(resource: &Resource, object: &mut Value) -> Result<(), ApiError> {
    let refused = |error: serde_json::Error| {
        let kind = &resource.kind;
        ApiError::bad_request(format!(
            "{kind} in version \"{}\" cannot be handled as a {kind}: {error}",
            resource.version
        ))
    };
    // By reference: a `Value` of its own would be one copy more.
    let typed = T::deserialize(&*object).map_err(refused)?;
    *object = serde_json::to_value(typed).map_err(refused)?;
    if resource.is(SERVICES) && object.get("status").is_none_or(Value::is_null) {
        object["status"] = json!({"loadBalancer": {}});
    }
    Ok(())
}

fn micro_times(resource: &Resource) -> &'static [&'static str] {
    match &*resource.id {
        LEASES => &["/spec/acquireTime", "/spec/renewTime"],
        EVENTS => &["/eventTime", "/series/lastObservedTime"],
        _ => &[],
    }
}

/// Six digits, no more and no fewer: `.000000` in a Go layout.
fn is_micro_time(time: &str) -> bool {
    let Some((seconds, fraction)) = time.split_once('.') else { return false };
    let Some((digits, zone)) = fraction.split_at_checked(6) else { return false };
    digits.bytes().all(|b| b.is_ascii_digit()) && format!("{seconds}{zone}").parse::<jiff::Timestamp>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_micro_time_has_six_digits() {
        for good in ["2026-01-02T03:04:05.000000Z", "2026-01-02T03:04:05.123456+01:00"] {
            assert!(is_micro_time(good), "{good}");
        }
        for bad in ["2026-01-02T03:04:05Z", "2026-01-02T03:04:05.123Z", "2026-01-02T03:04:05.123456789Z", "now.000000Z"]
        {
            assert!(!is_micro_time(bad), "{bad}");
        }
    }
}
