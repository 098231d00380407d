use super::*;

const MINIMAL: &str = "version = 1\n[[port]]\ninterface = \"eth0\"\n";

#[test]
fn the_smallest_file_is_good() {
    parse(MINIMAL, "lb.toml").expect("a box without services");
}
