//! Has the linker put together the code that a VM does not run: see `cold.ld`.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=cold.ld");
    let target = |part| env::var(format!("CARGO_CFG_TARGET_{part}")).unwrap_or_default();
    // The patterns are for the linker that .cargo/config.toml names for this target.
    if (target("ARCH").as_str(), target("ENV").as_str()) == ("aarch64", "musl") {
        let folder = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bin=tessera=-T{folder}/cold.ld");
    }
}
