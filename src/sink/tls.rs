//! settings, a TCP connection → the same inside TLS.
//!
//! Files are read at every connection, because certificates rotate. Without a CA file the
//! system's bundle says whom to trust.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::Tls;

/// Debian and its kin, Alpine, the scratch image; then Red Hat's.
const BUNDLES: [&str; 2] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
];

/// Shakes hands with `host`.
///
/// # Errors
/// A file that cannot be read, a certificate that is not trusted: in words.
pub async fn wrap(stream: TcpStream, tls: &Tls, host: &str) -> io::Result<TlsStream<TcpStream>> {
    let name = tls.server_name.as_deref().unwrap_or(host).to_owned();
    let name = ServerName::try_from(name)
        .map_err(|error| io::Error::other(format!("no name for TLS: {error}")))?;
    let connector = TlsConnector::from(Arc::new(client(tls)?));
    connector
        .connect(name, stream)
        .await
        .map_err(|error| io::Error::other(format!("TLS: {error}")))
}

fn client(tls: &Tls) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let bundle = match &tls.ca_file {
        Some(file) => file.clone(),
        None => BUNDLES
            .iter()
            .map(PathBuf::from)
            .find(|bundle| bundle.exists())
            .ok_or_else(|| {
                io::Error::other("no CA certificates on this machine: set tls.ca_file")
            })?,
    };
    for certificate in certificates(&bundle)? {
        // A bundle may hold what nobody understands; the rest of it is as good.
        let _ = roots.add(certificate);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots);
    match &tls.own {
        None => Ok(builder.with_no_client_auth()),
        Some((cert_file, key_file)) => {
            let key = PrivateKeyDer::from_pem_file(key_file)
                .map_err(|error| unreadable(key_file, &error))?;
            builder
                .with_client_auth_cert(certificates(cert_file)?, key)
                .map_err(|error| unreadable(cert_file, &error))
        }
    }
}

fn certificates(file: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(file, &error))
}

fn unreadable(file: &Path, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", file.display()))
}
