//! Credentials in the files of AWS' tools: profiles in `~/.aws`, and the program that a profile names.
//!
//! Other sources (the environment, web identities, containers, the service of a machine) are the library's.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use barmanfs_store::sync::lock;
use barmanfs_store::threads;
use jiff::{Timestamp, ToSpan};
use object_store::CredentialProvider;
use object_store::aws::AwsCredential;
use serde::Deserialize;

use crate::settings::Settings;

/// A program for credentials asks a service; one that takes longer waits for a person.
const PROCESS_ENDS_WITHIN: Duration = Duration::from_secs(60);

/// Its answer is a few hundred bytes.
const ANSWER_MAX_BYTES: u64 = 64 * 1024;

/// Keys of profiles that another tool has to follow.
const OF_OTHER_TOOLS: [&str; 4] = ["sso_session", "sso_start_url", "role_arn", "source_profile"];

/// A profile, from both files.
#[derive(Default)]
pub(crate) struct Profile {
    name: String,
    keys: BTreeMap<String, String>,
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Profile {
    /// The profile that counts. It has no keys where nothing is written about it.
    ///
    /// # Errors
    /// When a file cannot be read, or one that is asked for by name does not exist.
    pub(crate) fn read(settings: &Settings) -> Result<Self, String> {
        let asked = settings
            .profile
            .as_deref()
            .or_else(|| settings.variable("AWS_PROFILE"));
        let name = asked.unwrap_or("default");
        let mut profile = Self {
            name: name.to_owned(),
            keys: BTreeMap::new(),
        };
        let named = format!("profile {name}");
        for (variable, usual) in [
            ("AWS_CONFIG_FILE", "config"),
            ("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
        ] {
            if let Some(path) = file(settings, variable, usual) {
                profile.add(&path, &[name, &named])?;
            }
        }
        match asked {
            Some(name) if profile.keys.is_empty() => Err(format!(
                "Neither ~/.aws/credentials nor ~/.aws/config has a profile '{name}'"
            )),
            _ => Ok(profile),
        }
    }

    fn add(&mut self, path: &Path, sections: &[&str]) -> Result<(), String> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(format!("Cannot read {}: {error}", path.display())),
        };
        let mut is_ours = false;
        for line in text.lines() {
            let is_indented = line.starts_with([' ', '\t']);
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(section) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                is_ours = sections.contains(&section.trim());
            } else if let (true, false, Some((key, value))) = (is_ours, is_indented, line.split_once('=')) {
                let key = key.trim().to_ascii_lowercase();
                self.keys.insert(key, value.trim().to_owned());
            }
        }
        Ok(())
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.keys
            .get(key)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// What gives the credentials of this profile; `None` if it has none.
    ///
    /// # Errors
    /// When only another tool could get them.
    pub(crate) fn provider(
        &self,
    ) -> Result<Option<Arc<dyn CredentialProvider<Credential = AwsCredential>>>, String> {
        if let (Some(key), Some(secret)) = (self.get("aws_access_key_id"), self.get("aws_secret_access_key"))
        {
            let credential = AwsCredential {
                key_id: key.to_owned(),
                secret_key: secret.to_owned(),
                token: self.get("aws_session_token").map(str::to_owned),
            };
            return Ok(Some(Arc::new(object_store::StaticCredentialProvider::new(
                credential,
            ))));
        }
        if let Some(command) = self.get("credential_process") {
            return Ok(Some(Arc::new(FromProcess {
                command: command.to_owned(),
                last: Arc::default(),
            })));
        }
        match OF_OTHER_TOOLS.iter().find(|key| self.get(key).is_some()) {
            Some(key) => Err(format!(
                "Profile '{0}' of ~/.aws has '{key}', which barmanfs does not follow: write into a profile of its own \
                 'credential_process = aws configure export-credentials --profile {0} --format process'",
                self.name
            )),
            None => Ok(None),
        }
    }
}

fn file(settings: &Settings, variable: &str, usual: &str) -> Option<PathBuf> {
    match settings.variable(variable) {
        Some(path) => Some(PathBuf::from(path)),
        None => Some(Path::new(settings.variable("HOME")?).join(".aws").join(usual)),
    }
}

/// Credentials that a program prints.
struct FromProcess {
    command: String,
    last: Arc<Mutex<Option<Fresh>>>,
}

#[derive(Clone)]
struct Fresh {
    credential: Arc<AwsCredential>,
    expires: Option<Timestamp>,
}

/// What the program prints, as AWS' tools define it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Printed {
    version: u32,
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
    expiration: Option<String>,
}

impl fmt::Debug for FromProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FromProcess")
    }
}

#[async_trait]
impl CredentialProvider for FromProcess {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let (command, last) = (self.command.clone(), Arc::clone(&self.last));
        let got = tokio::task::spawn_blocking(move || current(&command, &last)).await;
        let failed = |text: String| object_store::Error::NotSupported { source: text.into() };
        got.map_err(|_| failed("credential_process could not be run".to_owned()))?
            .map_err(failed)
    }
}

/// The last credentials, or new ones where those end soon. Requests that come meanwhile wait for the one program.
fn current(command: &str, last: &Mutex<Option<Fresh>>) -> Result<Arc<AwsCredential>, String> {
    let mut last = lock(last);
    let is_fresh = |fresh: &Fresh| {
        fresh
            .expires
            .is_none_or(|end| Timestamp::now() + 5.minutes() < end)
    };
    if let Some(fresh) = last.as_ref().filter(|fresh| is_fresh(fresh)) {
        return Ok(Arc::clone(&fresh.credential));
    }
    let fresh = ask(command)?;
    let credential = Arc::clone(&fresh.credential);
    *last = Some(fresh);
    Ok(credential)
}

/// Runs the program. Nothing that it prints is in an error: it may be the secret.
fn ask(command: &str) -> Result<Fresh, String> {
    let failed = |what: &str| format!("credential_process of the profile in ~/.aws {what}");
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| failed(&format!("cannot be started: {error}")))?;
    let output = child.stdout.take();
    let reader = threads::start("credentials", move || {
        let mut text = String::new();
        let read = output.map(|output| output.take(ANSWER_MAX_BYTES).read_to_string(&mut text));
        matches!(read, Some(Ok(_))).then_some(text)
    });
    let reader = reader.map_err(|refused| {
        let _ = child.kill();
        let _ = child.wait();
        refused.to_string()
    })?;
    let began = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if began.elapsed() < PROCESS_ENDS_WITHIN => {
                std::thread::sleep(Duration::from_millis(20));
            }
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed("does not end"));
            }
        }
    };
    if !status.success() {
        return Err(failed(&format!("failed ({status})")));
    }
    let text = reader.join().ok().flatten().unwrap_or_default();
    let printed: Printed = serde_json::from_str(&text)
        .map_err(|_| failed("printed no JSON with AccessKeyId and SecretAccessKey"))?;
    if printed.version != 1 {
        return Err(failed("printed another version than 1"));
    }
    let expires = printed.expiration.map(|text| text.parse());
    Ok(Fresh {
        credential: Arc::new(AwsCredential {
            key_id: printed.access_key_id,
            secret_key: printed.secret_access_key,
            token: printed.session_token,
        }),
        expires: expires
            .transpose()
            .map_err(|_| failed("printed an Expiration that is no time"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(directory: &Path, profile: Option<&str>) -> Settings {
        Settings {
            profile: profile.map(str::to_owned),
            environment: BTreeMap::from([("HOME".to_owned(), directory.display().to_string())]),
            ..Settings::default()
        }
    }

    fn home(config: &str, credentials: &str) -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        std::fs::write(home.path().join(".aws/config"), config).unwrap();
        std::fs::write(home.path().join(".aws/credentials"), credentials).unwrap();
        home
    }

    fn given(
        provider: &dyn CredentialProvider<Credential = AwsCredential>,
    ) -> Result<(String, String), String> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .unwrap();
        let credential = runtime.block_on(provider.get_credential());
        let credential = credential.map_err(|error| error.to_string())?;
        Ok((credential.key_id.clone(), credential.secret_key.clone()))
    }

    #[test]
    fn a_profile_is_what_both_files_say_of_it() {
        let home = home(
            "[default]\nregion = one\n[profile far]\nregion = two\ns3 =\n  region = nested\n",
            "# keys\n[far]\naws_access_key_id = K\naws_secret_access_key=S=x\n",
        );
        let far = Profile::read(&settings(home.path(), Some("far"))).unwrap();
        assert_eq!(far.get("region"), Some("two"));
        let provider = far.provider().unwrap().unwrap();
        assert_eq!(
            given(provider.as_ref()).unwrap(),
            ("K".to_owned(), "S=x".to_owned())
        );
        let default = Profile::read(&settings(home.path(), None)).unwrap();
        assert_eq!(default.get("region"), Some("one"));
        assert!(default.provider().unwrap().is_none());
        assert!(Profile::read(&settings(home.path(), Some("none"))).is_err());
    }

    #[test]
    fn a_program_is_asked_again_when_its_credentials_end() {
        let answers = tempfile::tempdir().unwrap();
        let count = answers.path().join("count");
        let print = |end: &str| {
            format!(
                "[default]\ncredential_process = echo x >> {}; printf '{{\"Version\":1,\"AccessKeyId\":\"K\",\"SecretAccessKey\":\"S\"{end}}}'\n",
                count.display()
            )
        };
        for (end, times) in [("", 1), (",\"Expiration\":\"2020-01-01T00:00:00Z\"", 2)] {
            let _ = std::fs::remove_file(&count);
            let home = home(&print(end), "");
            let profile = Profile::read(&settings(home.path(), None)).unwrap();
            let provider = profile.provider().unwrap().unwrap();
            assert_eq!(given(provider.as_ref()).unwrap().0, "K");
            assert_eq!(given(provider.as_ref()).unwrap().1, "S");
            assert_eq!(std::fs::read_to_string(&count).unwrap().lines().count(), times);
        }
    }

    #[test]
    fn no_error_has_what_a_program_printed() {
        for command in [
            "echo SECRET",
            "echo SECRET; exit 3",
            "printf '{\"Version\":2,\"AccessKeyId\":\"SECRET\",\"SecretAccessKey\":\"SECRET\"}'",
        ] {
            let home = home(&format!("[default]\ncredential_process = {command}\n"), "");
            let profile = Profile::read(&settings(home.path(), None)).unwrap();
            let error = given(profile.provider().unwrap().unwrap().as_ref()).unwrap_err();
            assert!(
                error.contains("credential_process") && !error.contains("SECRET"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_profile_of_another_tool_says_how_to_use_it() {
        let home = home("[profile sso]\nsso_session = x\n", "");
        let error = Profile::read(&settings(home.path(), Some("sso")))
            .unwrap()
            .provider()
            .unwrap_err();
        assert!(error.contains("export-credentials --profile sso"), "{error}");
    }
}
