//! Certificates for servers and clients of a test: a certificate authority of its own, and what it has signed.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};
use tempfile::TempDir;

/// A certificate authority with a server and a client, as PEM files in a temporary folder.
#[derive(Debug)]
pub struct Certificates {
    folder: TempDir,
}

/// The subject of the client's certificate, as the server spells it.
pub const CLIENT_SUBJECT: &str = "CN=hindsight,OU=backups,O=Test";

impl Certificates {
    /// Makes new ones.
    ///
    /// # Errors
    /// Those of the file system, and of making keys.
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("hindsight-tls-").tempdir()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "Test CA");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        fs::write(folder.path().join("ca.pem"), authority.pem())?;
        // A client whose organisation is that of the server would count as a member of the set.
        for (file, names, unit, organisation) in [
            ("server.pem", vec!["127.0.0.1".to_owned(), "localhost".to_owned()], "servers", "Servers"),
            ("client.pem", Vec::new(), "backups", "Test"),
        ] {
            let mut params = CertificateParams::new(names)?;
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::OrganizationName, organisation);
            params.distinguished_name.push(DnType::OrganizationalUnitName, unit);
            params.distinguished_name.push(DnType::CommonName, "hindsight");
            let key = KeyPair::generate()?;
            let signed = params.signed_by(&key, &authority)?;
            fs::write(folder.path().join(file), format!("{}{}", signed.pem(), key.serialize_pem()))?;
        }
        Ok(Self { folder })
    }

    /// The authority's certificate.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The server's certificate and key.
    pub fn server(&self) -> PathBuf {
        self.folder.path().join("server.pem")
    }

    /// The client's certificate and key.
    pub fn client(&self) -> PathBuf {
        self.folder.path().join("client.pem")
    }
}
