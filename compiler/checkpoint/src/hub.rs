//! Checkpoints by repository: the local Hugging Face cache first, then the hub.

use std::path::{Path, PathBuf};

use hf_hub::api::Progress;
use hf_hub::api::sync::ApiBuilder;
use hf_hub::{Cache, Repo, RepoType};
use qwen2c_format::Diagnostic;

use crate::files::read_json_if_present;
use crate::safetensors::shard_names;

/// What happens while a checkpoint is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownloadEvent<'a> {
    /// A file begins.
    Started {
        /// Its name in the repository.
        file: &'a str,
        /// Its length.
        bytes: u64,
    },
    /// Bytes arrived since the last event.
    Received {
        /// Their number.
        bytes: u64,
    },
    /// The file is complete.
    Finished,
}

/// Files of a repository that are wanted besides the tensors, where they exist.
const OPTIONAL_FILES: [&str; 4] =
    ["generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];
const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// Finds the directory of a repository's checkpoint: in the local Hugging Face cache, or after fetching
/// it from the hub into that cache.
///
/// # Errors
///
/// When it is not in the cache and the hub cannot be reached or does not have it.
pub(crate) fn locate_checkpoint(
    repository: &str,
    revision: &str,
    progress: &mut dyn FnMut(DownloadEvent<'_>),
) -> Result<PathBuf, Diagnostic> {
    if let Some(folder) = cached_checkpoint(repository, revision) {
        return Ok(folder);
    }
    let Some(cache) = users_cache() else {
        return Err(not_available(repository, "no home directory for the Hugging Face cache: set `HF_HOME`"));
    };
    if std::env::var_os("HF_HUB_OFFLINE").is_some_and(|value| !value.is_empty() && value != "0") {
        return Err(not_available(repository, "not in the local cache, and `HF_HUB_OFFLINE` is set"));
    }
    download(&cache, repository, revision, progress)
}

/// The directory of a repository's checkpoint in the local Hugging Face cache, where it lies there as a whole.
pub(crate) fn cached_checkpoint(repository: &str, revision: &str) -> Option<PathBuf> {
    find_in_cache(&users_cache()?, repository, revision)
}

fn users_cache() -> Option<PathBuf> {
    cache_folder(&|name| std::env::var_os(name).map(PathBuf::from))
}

/// The cache's folder as the hub's own client finds it.
fn cache_folder(variable: &dyn Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    variable("HF_HUB_CACHE")
        .or_else(|| variable("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/huggingface/hub")))
}

/// The snapshot of a revision, where it is complete.
fn find_in_cache(cache: &Path, repository: &str, revision: &str) -> Option<PathBuf> {
    if revision.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return None;
    }
    let folder = cache.join(format!("models--{}", repository.replace('/', "--")));
    let commit = match std::fs::read_to_string(folder.join("refs").join(revision)) {
        Ok(commit) => commit.trim().to_owned(),
        Err(_) => revision.to_owned(),
    };
    if commit.contains(['/', '.']) {
        return None;
    }
    let snapshot = folder.join("snapshots").join(commit);
    is_complete(&snapshot).then_some(snapshot)
}

/// Whether a folder has a configuration and all its tensors' files.
fn is_complete(folder: &Path) -> bool {
    if !folder.join("config.json").is_file() {
        return false;
    }
    if folder.join(SINGLE_FILE).is_file() {
        return true;
    }
    let index = folder.join(INDEX_FILE);
    match read_json_if_present(&index) {
        Ok(Some(object)) => shard_names(&object, &index).is_ok_and(|shards| {
            !shards.is_empty() && shards.iter().all(|shard| folder.join(shard).is_file())
        }),
        _ => false,
    }
}

/// Fetches the few files that a checkpoint consists of.
fn download(
    cache: &Path,
    repository: &str,
    revision: &str,
    progress: &mut dyn FnMut(DownloadEvent<'_>),
) -> Result<PathBuf, Diagnostic> {
    let failed = |error: hf_hub::api::sync::ApiError| not_available(repository, &error.to_string());
    let mut builder =
        ApiBuilder::from_cache(Cache::new(cache.to_owned())).with_progress(false).with_retries(2);
    if let Ok(endpoint) = std::env::var("HF_ENDPOINT") {
        builder = builder.with_endpoint(endpoint);
    }
    if let Ok(token) = std::env::var("HF_TOKEN") {
        builder = builder.with_token(Some(token));
    }
    let wanted = Repo::with_revision(repository.to_owned(), RepoType::Model, revision.to_owned());
    let local = Cache::new(cache.to_owned()).repo(wanted.clone());
    let repo = builder.build().map_err(failed)?.repo(wanted);
    let mut fetch = |file: &str| match local.get(file) {
        Some(path) => Ok(path),
        None => repo.download_with_progress(file, EventSender { progress: &mut *progress }).map_err(failed),
    };
    let files: Vec<String> =
        repo.info().map_err(failed)?.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
    let has = |name: &str| files.iter().any(|file| file == name);

    let config = fetch("config.json")?;
    let folder = config.parent().map(Path::to_owned).unwrap_or_default();
    for file in OPTIONAL_FILES.into_iter().filter(|file| has(file)) {
        fetch(file)?;
    }
    if has(SINGLE_FILE) {
        fetch(SINGLE_FILE)?;
        return Ok(folder);
    }
    let index = fetch(INDEX_FILE)?;
    let object = read_json_if_present(&index)?.unwrap_or_default();
    for shard in shard_names(&object, &index)? {
        fetch(&shard)?;
    }
    Ok(folder)
}

/// Turns the hub client's calls into events.
struct EventSender<'a> {
    progress: &'a mut dyn FnMut(DownloadEvent<'_>),
}

impl Progress for EventSender<'_> {
    fn init(&mut self, size: usize, filename: &str) {
        (self.progress)(DownloadEvent::Started { file: filename, bytes: size as u64 });
    }

    fn update(&mut self, size: usize) {
        (self.progress)(DownloadEvent::Received { bytes: size as u64 });
    }

    fn finish(&mut self) {
        (self.progress)(DownloadEvent::Finished);
    }
}

/// The checkpoint is neither here nor there.
fn not_available(repository: &str, cause: &str) -> Diagnostic {
    Diagnostic::new(format!("the checkpoint `{repository}` is not here and cannot be fetched"))
        .at("`--model`")
        .cause(cause)
        .help("pass a directory with `config.json` and `model.safetensors`: `--weights DIR`")
        .help("or a GGUF file of the model: `--weights FILE.gguf`")
        .help("or build without a checkpoint, to measure speed: `--weights random`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> Option<PathBuf> {
        let pairs: Vec<(String, PathBuf)> =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), PathBuf::from(value))).collect();
        cache_folder(&|name| pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone()))
    }

    #[test]
    fn the_cache_lies_where_the_hub_s_client_puts_it() {
        assert_eq!(variables(&[]), None);
        assert_eq!(variables(&[("HOME", "/h")]), Some("/h/.cache/huggingface/hub".into()));
        assert_eq!(variables(&[("HOME", "/h"), ("HF_HOME", "/f")]), Some("/f/hub".into()));
        assert_eq!(variables(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]), Some("/c".into()));
    }

    #[test]
    fn a_snapshot_is_found_by_branch_and_by_commit_when_it_is_complete() {
        let cache = tempfile::tempdir().unwrap();
        let folder = cache.path().join("models--Qwen--Qwen2-0.5B");
        let snapshot = folder.join("snapshots/abc123");
        std::fs::create_dir_all(folder.join("refs")).unwrap();
        std::fs::create_dir_all(&snapshot).unwrap();
        std::fs::write(folder.join("refs/main"), "abc123\n").unwrap();
        std::fs::write(snapshot.join("config.json"), "{}").unwrap();
        let find = |revision: &str| find_in_cache(cache.path(), "Qwen/Qwen2-0.5B", revision);
        assert_eq!(find("main"), None, "the tensors are missing");

        let index = r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#;
        std::fs::write(snapshot.join("model.safetensors.index.json"), index).unwrap();
        std::fs::write(snapshot.join("one.safetensors"), "").unwrap();
        assert_eq!(find("main"), None, "a shard is missing");
        std::fs::write(snapshot.join("two.safetensors"), "").unwrap();
        assert_eq!(find("main"), Some(snapshot.clone()));
        assert_eq!(find("abc123"), Some(snapshot));
        assert_eq!(find("other"), None);
        assert_eq!(find("../../abc123"), None);
    }

    #[test]
    fn an_unreachable_hub_says_what_to_pass_instead() {
        let message = not_available("Qwen/Qwen2-7B", "no route").to_string();
        assert!(message.contains("`Qwen/Qwen2-7B` is not here and cannot be fetched"));
        assert!(message.contains("cause: no route") && message.contains("`--weights random`"));
    }
}
