//! Generates the stubs from the protos, without protoc.

use std::{error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=protos");
    let mut files = Vec::new();
    find(Path::new("protos/qflow"), &mut files)?;
    files.sort();
    let mut contract = protox::compile(&files, ["protos", "protos/vendor"])?;
    // The rules of fields are options, which prost does not read.
    contract
        .file
        .retain(|file| !file.package().starts_with("buf."));
    tonic_prost_build::configure()
        .build_server(false)
        .extern_path(".google.rpc.Status", "::tonic_types::Status")
        .include_file("contract.rs")
        .compile_fds(contract)?;
    Ok(())
}

fn find(folder: &Path, files: &mut Vec<String>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            find(&path, files)?;
        } else if path
            .extension()
            .is_some_and(|extension| extension == "proto")
        {
            let name = path.strip_prefix("protos")?;
            files.push(name.to_string_lossy().into_owned());
        }
    }
    Ok(())
}
