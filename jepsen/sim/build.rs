//! The random numbers of a simulation come from `getrandom` as this binary defines it. Who looks the symbol up at run
//! time finds it only if it is exported.

fn main() {
    println!("cargo:rustc-link-arg=-rdynamic");
    println!("cargo:rerun-if-changed=build.rs");
}
