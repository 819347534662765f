//! TLS as libpq understands it (<https://www.postgresql.org/docs/current/libpq-ssl.html>), by rustls.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, RootCertStore};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::channel::Duplex;
use super::error::{Error, Result, one_line};
use super::verifier::Verifier;
use crate::address::{Address, RootCertificates, Ssl, SslMode};

/// Files of certificates and keys are small.
const LONGEST: u64 = 16 << 20;

/// What TLS connections to the servers of an address have in common.
pub(super) struct Tls(TlsConnector);

impl Tls {
    /// Reads the certificates that the address names, or that lie where libpq looks for them.
    pub(super) async fn new(address: &Address) -> Result<Self> {
        let ssl = &address.ssl;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = Arc::new(verifier(ssl, &provider).await?);
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| bad_file("the TLS library cannot be used", &error))?
            .dangerous()
            .with_custom_certificate_verifier(verifier as Arc<dyn ServerCertVerifier>);
        let mut config = match client_certificate(ssl).await? {
            Some((chain, key)) => config
                .with_client_auth_cert(chain, key)
                .map_err(|error| bad_file("the client's certificate and key cannot be used", &error))?,
            None => config.with_no_client_auth(),
        };
        // Servers of PostgreSQL have no sessions to go on with.
        config.resumption = Resumption::disabled();
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Goes on in TLS over `socket`, to a server that was called `name`.
    pub(super) async fn connect<S: Duplex>(&self, socket: S, name: &str, doing: &str) -> Result<TlsStream<S>> {
        let name = ServerName::try_from(name.to_owned()).map_err(|_| Error::Address {
            what: format!("{name} is no name that a certificate can be for"),
            hint: "name the server by its DNS name or its IP address, or use a unix socket".to_owned(),
        })?;
        self.0.connect(name, socket).await.map_err(|error| failed(doing, error))
    }
}

/// A handshake that failed, or what a server says of our certificate afterwards.
pub(super) fn failed(doing: &str, error: io::Error) -> Error {
    let Some(cause) = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) else {
        return Error::broken(doing, error);
    };
    let (what, hint) = match cause {
        rustls::Error::InvalidCertificate(reason) => (
            format!("the server's certificate is not to be trusted while {doing}: {}", one_line(&reason.to_string())),
            "check sslrootcert and the host's name: verify-full wants the name in the certificate's subjectAltName, \
             verify-ca does not",
        ),
        rustls::Error::AlertReceived(alert) if rejects_certificate(*alert) => {
            return Error::Authentication {
                what: format!("the server does not take our certificate while {doing}: {alert:?}"),
                hint: "check sslcert and sslkey, and that ssl_ca_file on the server has who signed the certificate"
                    .to_owned(),
            };
        }
        other => (
            format!("there is no TLS connection while {doing}: {}", one_line(&other.to_string())),
            "see the server's log; TLS 1.2 or newer is needed",
        ),
    };
    Error::Unreachable { what, hint: hint.to_owned(), source: Some(error) }
}

fn rejects_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::AccessDenied
            // The signature of an authority that has the name of the right one.
            | Alert::DecryptError
    )
}

/// Who is checked, and how: see the table in "SSL Mode Descriptions". Root certificates make `require` check as much
/// as `verify-ca` does, as they always did in libpq.
async fn verifier(ssl: &Ssl, provider: &Arc<CryptoProvider>) -> Result<Verifier> {
    let fallback = ssl.folder.as_ref().map(|folder| folder.join("root.crt"));
    let roots = match (&ssl.root, ssl.mode) {
        (_, SslMode::Disable | SslMode::Allow | SslMode::Prefer) => None,
        (Some(RootCertificates::System), _) => Some(system_roots()?),
        (Some(RootCertificates::File(file)), _) => Some(certificates(file).await?),
        (None, _) => match fallback {
            Some(file) if exists(&file).await => Some(certificates(&file).await?),
            _ if ssl.mode == SslMode::Require => None,
            _ => {
                return Err(Error::Address {
                    what: "the server's certificate is to be checked, and there are no root certificates for it"
                        .to_owned(),
                    hint: "name them with sslrootcert=FILE, or sslrootcert=system for those that the system trusts"
                        .to_owned(),
                });
            }
        },
    };
    let Some(roots) = roots else { return Ok(Verifier::of_nothing(provider)) };
    let mut store = RootCertStore::empty();
    let (taken, _) = store.add_parsable_certificates(roots.iter().cloned());
    if taken == 0 {
        return Err(Error::Address {
            what: "there is no usable certificate among the root certificates".to_owned(),
            hint: "sslrootcert names a file of X.509 certificates in PEM form".to_owned(),
        });
    }
    Ok(Verifier::new(provider, store, roots, ssl.mode == SslMode::VerifyFull))
}

fn system_roots() -> Result<Vec<CertificateDer<'static>>> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        return Err(Error::Address {
            what: "sslrootcert=system: this system has no root certificates".to_owned(),
            hint: "install them (Debian: ca-certificates), or name a file".to_owned(),
        });
    }
    Ok(found.certs)
}

async fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = read(file).await?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| bad_file(&format!("{} is no file of certificates", file.display()), &error))?;
    if found.is_empty() {
        return Err(bad_file(&format!("{} is no file of certificates", file.display()), &"there is none in it"));
    }
    Ok(found)
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Our own certificate, where there is one.
async fn client_certificate(ssl: &Ssl) -> Result<Option<Identity>> {
    let fallback = |name: &str| ssl.folder.as_ref().map(|folder| folder.join(name));
    let file = match &ssl.certificate {
        Some(file) => file.clone(),
        None => match fallback("postgresql.crt") {
            Some(file) if exists(&file).await => file,
            _ => return Ok(None),
        },
    };
    let Some(key_file) = ssl.key.clone().or_else(|| fallback("postgresql.key")) else {
        return Err(Error::Address {
            what: format!("there is no key for the certificate {}", file.display()),
            hint: "name it with sslkey=FILE".to_owned(),
        });
    };
    let chain = certificates(&file).await?;
    let text = read(&key_file).await?;
    must_be_private(&key_file).await?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| {
        bad_file(&format!("{} is no file of a key without a passphrase", key_file.display()), &error)
    })?;
    Ok(Some((chain, key)))
}

/// As libpq: 0600, or 0640 where it belongs to root.
async fn must_be_private(file: &PathBuf) -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let info = tokio::fs::metadata(file).await.map_err(|error| cannot_read(file, &error))?;
    let allowed = if info.uid() == 0 { 0o740 } else { 0o700 };
    if info.permissions().mode() & 0o777 & !allowed != 0 {
        return Err(Error::Address {
            what: format!("the key {} can be read by others", file.display()),
            hint: format!("chmod 600 {}", file.display()),
        });
    }
    Ok(())
}

async fn exists(file: &Path) -> bool {
    tokio::fs::try_exists(file).await.unwrap_or(false)
}

async fn read(file: &Path) -> Result<Vec<u8>> {
    let info = tokio::fs::metadata(file).await.map_err(|error| cannot_read(file, &error))?;
    if info.len() > LONGEST {
        return Err(bad_file(&format!("{} is no file of certificates or keys", file.display()), &"it is too long"));
    }
    tokio::fs::read(file).await.map_err(|error| cannot_read(file, &error))
}

fn cannot_read(file: &Path, error: &io::Error) -> Error {
    bad_file(&format!("{} cannot be read", file.display()), error)
}

fn bad_file(what: &str, why: &dyn std::fmt::Display) -> Error {
    Error::Address {
        what: format!("{what}: {}", one_line(&why.to_string())),
        hint: "check sslrootcert, sslcert and sslkey, and the files in ~/.postgresql".to_owned(),
    }
}
