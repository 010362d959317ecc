//! Gives libdflow.so its soname, so that a function library linked with `-ldflow` is satisfied by
//! the instance that the zygote has already opened, whatever its path.
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libdflow.so");
}
