//! What is checked of a server's certificate, and what of it a password is bound to.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};

/// Checks as much as `sslmode` asks for.
#[derive(Debug)]
pub(super) struct Verifier {
    provider: Arc<CryptoProvider>,
    trust: Option<Trust>,
}

#[derive(Debug)]
struct Trust {
    roots: RootCertStore,
    certificates: Vec<CertificateDer<'static>>,
    check_name: bool,
}

impl Verifier {
    /// Encryption alone: whoever sits in between is not noticed.
    pub(super) fn of_nothing(provider: &Arc<CryptoProvider>) -> Self {
        Self { provider: Arc::clone(provider), trust: None }
    }

    /// A certificate that one of `roots` vouches for, and for the right name if that is to be checked.
    pub(super) fn new(
        provider: &Arc<CryptoProvider>,
        roots: RootCertStore,
        certificates: Vec<CertificateDer<'static>>,
        check_name: bool,
    ) -> Self {
        Self { provider: Arc::clone(provider), trust: Some(Trust { roots, certificates, check_name }) }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(trust) = &self.trust else { return Ok(ServerCertVerified::assertion()) };
        let parsed = ParsedCertificate::try_from(certificate)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        let signed = verify_server_cert_signed_by_trust_anchor(&parsed, &trust.roots, intermediates, now, algorithms);
        match signed {
            // `openssl req -x509` makes certificates that vouch for themselves, and many a server has one. OpenSSL, so
            // libpq, takes one that is itself among the root certificates; webpki says this of it, after having checked its dates.
            Err(error) if is_authority(&error) && trust.certificates.iter().any(|root| root == certificate) => {}
            other => other?,
        }
        if trust.check_name {
            verify_server_name(&parsed, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn is_authority(error: &Error) -> bool {
    match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => {
            matches!(other.0.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
        }
        _ => false,
    }
}

/// `tls-server-end-point` of a certificate (RFC 5929, section 4.1): its hash, by the algorithm that its signature uses,
/// SHA-256 in the place of MD5 and SHA-1. None where the algorithm implies no hash, as that of Ed25519.
pub(super) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    // Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { OBJECT IDENTIFIER, ... }, ... }
    let (_, certificate_body, _) = element(certificate)?;
    let (_, _, rest) = element(certificate_body)?;
    let (_, algorithm, _) = element(rest)?;
    let (tag, oid, _) = element(algorithm)?;
    if tag != 0x06 {
        return None;
    }
    let hash = match oid {
        // 1.2.840.113549.1.1: md5, sha1, sha256, sha384, sha512 and sha224 with RSA
        [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 4 | 5 | 11] => Sha256::digest(certificate).to_vec(),
        [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 12] => Sha384::digest(certificate).to_vec(),
        [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 13] => Sha512::digest(certificate).to_vec(),
        [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 14] => Sha224::digest(certificate).to_vec(),
        // 1.2.840.10045.4: ECDSA with SHA-1, and 4.3 with SHA-224 and so on
        [0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x01] | [0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 2] => {
            Sha256::digest(certificate).to_vec()
        }
        [0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 1] => Sha224::digest(certificate).to_vec(),
        [0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 3] => Sha384::digest(certificate).to_vec(),
        [0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 4] => Sha512::digest(certificate).to_vec(),
        _ => return None,
    };
    Some(hash)
}

/// The tag of the first element of some DER, what is in it, and what comes after it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7F => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7F))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (body, rest) = rest.split_at_checked(length)?;
    Some((tag, body, rest))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::*;

    #[test]
    fn a_certificate_that_vouches_for_itself_is_taken_where_it_is_a_root() {
        let certificate = |authority: bool, years: std::ops::Range<i32>| {
            let mut params = CertificateParams::new(vec!["db1".to_owned()]).unwrap();
            params.is_ca = if authority { IsCa::Ca(BasicConstraints::Unconstrained) } else { IsCa::ExplicitNoCa };
            params.not_before = rcgen::date_time_ymd(years.start, 1, 1);
            params.not_after = rcgen::date_time_ymd(years.end, 1, 1);
            params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
        };
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verify = |shown: &CertificateDer<'static>, root: &CertificateDer<'static>, name: Option<&'static str>| {
            let mut store = RootCertStore::empty();
            store.add(root.clone()).unwrap();
            let verifier = Verifier::new(&provider, store, vec![root.clone()], name.is_some());
            let name = ServerName::try_from(name.unwrap_or("other")).unwrap();
            verifier.verify_server_cert(shown, &[], &name, &[], UnixTime::now())
        };
        for authority in [true, false] {
            let (shown, another) = (certificate(authority, 2020..3000), certificate(authority, 2020..3000));
            assert!(verify(&shown, &shown, None).is_ok());
            assert!(verify(&shown, &shown, Some("db1")).is_ok());
            assert!(verify(&shown, &shown, Some("db2")).is_err());
            assert!(verify(&shown, &another, None).is_err());
            let expired = certificate(authority, 2000..2010);
            let error = verify(&expired, &expired, None).unwrap_err();
            assert!(error.to_string().contains("xpired"), "{error}");
            assert!(
                Verifier::of_nothing(&provider)
                    .verify_server_cert(&expired, &[], &ServerName::try_from("x").unwrap(), &[], UnixTime::now())
                    .is_ok()
            );
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_end_point() {
        for der in [&b""[..], b"\x30", b"\x30\x84\xff\xff\xff\xff", b"\x30\x80", b"\x30\x02\x30\x00", &[0x30; 64]] {
            assert_eq!(end_point(der), None, "{der:?}");
        }
    }

    #[test]
    fn the_hash_follows_the_signature() {
        // tbsCertificate is empty; only the algorithm counts.
        let certificate = |oid: &[u8]| {
            let mut algorithm = vec![0x06, u8::try_from(oid.len()).unwrap_or_default()];
            algorithm.extend(oid);
            let mut body = vec![0x30, 0x00, 0x30, u8::try_from(algorithm.len()).unwrap_or_default()];
            body.extend(algorithm);
            let mut whole = vec![0x30, u8::try_from(body.len()).unwrap_or_default()];
            whole.extend(body);
            whole
        };
        let length = |oid: &[u8]| end_point(&certificate(oid)).map(|hash| hash.len());
        assert_eq!(length(&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 5]), Some(32));
        assert_eq!(length(&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 13]), Some(64));
        assert_eq!(length(&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 3]), Some(48));
        assert_eq!(length(&[0x2B, 0x65, 0x70]), None, "Ed25519");
    }
}
