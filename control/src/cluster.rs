//! The way to the API server: a kubeconfig, or the pod's own service account.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};

use crate::config::KubernetesConfig;
use crate::sync::api_error;

const IN_CLUSTER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("{path}: {source}")]
    Kubeconfig { path: PathBuf, source: KubeconfigError },
    #[error(
        "no way to an API server: {0}. Set kubernetes.kubeconfig (configs/kubernetes/README.md says how to make one), or run as \
         a pod with a service account"
    )]
    Infer(kube::config::InferConfigError),
    #[error("the client cannot be built: {0}")]
    Client(kube::Error),
    #[error("the API server does not let us in: {0}")]
    Unproven(String),
}

/// How long the API server may take to answer who tries new credentials.
const PATIENCE: Duration = Duration::from_secs(5);

/// A client, and the [`fingerprint`] of what it was made of.
pub type Connection = (kube::Client, u64);

/// As [`connect`], and the API server takes the credentials: a client can be made with a bundle that was cut off after
/// its first certificate, or with another cluster's token.
///
/// # Errors
/// As [`connect`]; and when the API server refuses, or does not answer.
pub async fn connect_proven(kubernetes: &KubernetesConfig) -> Result<Connection, ClusterError> {
    let (client, fingerprint) = connect(kubernetes).await?;
    // What control can do nothing without.
    let services: Api<Service> = Api::all(client.clone());
    match tokio::time::timeout(PATIENCE, services.list_metadata(&ListParams::default().limit(1))).await {
        Ok(Ok(_)) => Ok((client, fingerprint)),
        Ok(Err(error)) => Err(ClusterError::Unproven(api_error(&error))),
        Err(_) => Err(ClusterError::Unproven(format!("no answer in {} s", PATIENCE.as_secs()))),
    }
}

/// # Errors
/// When the kubeconfig cannot be read, or there is none and no service account either.
pub async fn connect(kubernetes: &KubernetesConfig) -> Result<Connection, ClusterError> {
    // Before the client: what changes meanwhile is another change.
    let fingerprint = fingerprint(kubernetes);
    let options = KubeConfigOptions { context: kubernetes.context.clone(), ..KubeConfigOptions::default() };
    let mut config = match &kubernetes.kubeconfig {
        Some(path) => {
            let failed = |source| ClusterError::Kubeconfig { path: path.clone(), source };
            let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(failed)?
        }
        None if kubernetes.context.is_some() => kube::Config::from_kubeconfig(&options)
            .await
            .map_err(|source| ClusterError::Kubeconfig { path: default_path(), source })?,
        None => kube::Config::infer().await.map_err(ClusterError::Infer)?,
    };
    // kube's default waits for ever on a server that accepts and says nothing. A watch is silent between bookmarks,
    // so the bound is the watch's own end and a little more.
    config.read_timeout = Some(Duration::from_secs(u64::from(kubernetes.timing.watch) + 15));
    Ok((kube::Client::try_from(config).map_err(ClusterError::Client)?, fingerprint))
}

fn default_path() -> PathBuf {
    std::env::var_os("KUBECONFIG").map_or_else(
        || std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default().join(".kube/config"),
        PathBuf::from,
    )
}

/// Changes when credentials do: a client keeps the CA and certificates it was built with, so a rotation needs a new
/// one. (Tokens in files are read again by the client itself.)
#[must_use]
pub fn fingerprint(kubernetes: &KubernetesConfig) -> u64 {
    let path = kubernetes.kubeconfig.clone().unwrap_or_else(default_path);
    let mut files = vec![path.clone(), PathBuf::from(IN_CLUSTER).join("ca.crt")];
    if let Ok(kubeconfig) = Kubeconfig::read_from(&path) {
        files.extend(referenced(&kubeconfig).into_iter().map(PathBuf::from));
    }
    let mut hasher = DefaultHasher::new();
    for file in files {
        // One that is being replaced is missing for a moment: another change.
        std::fs::read(&file).ok().hash(&mut hasher);
    }
    hasher.finish()
}

fn referenced(kubeconfig: &Kubeconfig) -> Vec<String> {
    let clusters = kubeconfig.clusters.iter().filter_map(|c| c.cluster.as_ref()?.certificate_authority.clone());
    let users = kubeconfig.auth_infos.iter().filter_map(|u| u.auth_info.as_ref());
    let keys = users.flat_map(|u| [u.client_certificate.clone(), u.client_key.clone()]).flatten();
    clusters.chain(keys).collect()
}
