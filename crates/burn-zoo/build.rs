//! Collects the zoo's own source and documentation into one text, the corpus that `burn-zoo train`
//! learns from when it is given none.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    // Asked for when it runs: a script that another checkout built may run here.
    let manifest = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let root = Path::new(&manifest).join("../..");
    let mut files = Vec::new();
    for name in ["README.md", "ARCHITECTURE.md", "docs", "crates", "examples"] {
        let path = root.join(name);
        println!("cargo::rerun-if-changed={}", path.display());
        collect(&path, &mut files)?;
    }
    let mut text = String::new();
    for file in files {
        text.push_str(&fs::read_to_string(file)?);
        text.push('\n');
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    fs::write(out.join("own_text.txt"), text)
}

/// Rust and Markdown files below `path`, in the order of their names.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if path.is_dir() {
        let entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
        let mut paths: Vec<_> = entries.iter().map(fs::DirEntry::path).collect();
        paths.sort();
        return paths.iter().try_for_each(|path| collect(path, files));
    }
    let is_text = path
        .extension()
        .is_some_and(|kind| kind == "rs" || kind == "md");
    if is_text && path.exists() {
        files.push(path.to_owned());
    }
    Ok(())
}
