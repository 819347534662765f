//! The service account of a [`GoogleServer`](super::GoogleServer), and the tokens by which it is known.

use std::collections::HashSet;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use rcgen::{KeyPair, PKCS_RSA_SHA256, RsaKeySize};
use serde::Deserialize;
use serde_json::{Value, json};

const EMAIL: &str = "hindsight@hindsight-test.iam.gserviceaccount.com";
/// Longest life of a token that a client signs itself: <https://google.aip.dev/auth/4111>.
const LONGEST_SECONDS: u64 = 3600;
/// What clocks may differ by.
const SKEW_SECONDS: u64 = 60;
/// Either of them opens the storage: <https://cloud.google.com/storage/docs/oauth-scopes>.
const SCOPES: [&str; 3] = [
    "https://www.googleapis.com/auth/cloud-platform",
    "https://www.googleapis.com/auth/devstorage.read_write",
    "https://www.googleapis.com/auth/devstorage.full_control",
];

/// One service account with one key.
#[derive(Debug)]
pub(super) struct Account {
    key_id: String,
    key: &'static KeyPair,
    given: Mutex<HashSet<String>>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: String,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    scope: String,
    iat: u64,
    exp: u64,
}

impl Account {
    /// An account of its own. Those of one process have the same key under other names: making one takes a while.
    pub(super) fn new() -> Result<Self> {
        static KEY: OnceLock<KeyPair> = OnceLock::new();
        let key = match KEY.get() {
            Some(key) => key,
            None => {
                let made = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?;
                KEY.get_or_init(|| made)
            }
        };
        Ok(Self { key_id: random(), key, given: Mutex::default() })
    }

    /// What its owner gets from Google, with the server's own address added, which the client reads too.
    pub(super) fn key(&self, endpoint: &str) -> Value {
        json!({
            "type": "service_account",
            "project_id": "hindsight-test",
            "private_key_id": self.key_id,
            "private_key": self.key.serialize_pem(),
            "client_email": EMAIL,
            "client_id": "1",
            "token_uri": "https://oauth2.googleapis.com/token",
            "gcs_base_url": endpoint,
        })
    }

    /// A token for a machine that has the account.
    pub(super) fn give_token(&self) -> Value {
        let token = format!("ya29.{}", random());
        self.given.lock().unwrap_or_else(PoisonError::into_inner).insert(token.clone());
        json!({"access_token": token, "expires_in": LONGEST_SECONDS, "token_type": "Bearer"})
    }

    /// Whether a request comes from the account.
    pub(super) fn accepts(&self, headers: &HeaderMap) -> bool {
        let value = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(token) = value.and_then(|value| value.strip_prefix("Bearer ")) else { return false };
        self.given.lock().unwrap_or_else(PoisonError::into_inner).contains(token) || self.signed(token).is_some()
    }

    /// Whether it is a token that the account signed by itself, as <https://google.aip.dev/auth/4111> has it.
    fn signed(&self, token: &str) -> Option<()> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let read = |part: &str| BASE64_URL_SAFE_NO_PAD.decode(part).ok();
        let header: Header = serde_json::from_slice(&read(header)?).ok()?;
        let claims: Claims = serde_json::from_slice(&read(claims)?).ok()?;
        let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, self.key.public_key_raw());
        public.verify(message.as_bytes(), &read(signature)?).ok()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
        let right = header.alg == "RS256"
            && header.kid == self.key_id
            && claims.iss == EMAIL
            && claims.sub == EMAIL
            && claims.scope.split(' ').any(|scope| SCOPES.contains(&scope))
            && claims.iat <= now + SKEW_SECONDS
            && claims.exp > now
            && claims.exp.checked_sub(claims.iat)? <= LONGEST_SECONDS;
        right.then_some(())
    }
}

fn random() -> String {
    format!("{:032x}", rand::random::<u128>())
}
