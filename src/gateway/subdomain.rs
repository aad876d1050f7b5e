//! Secure subdomains: a package's own origin, so that a browser keeps apps apart (node contract, section 5).

use crate::process_id::ProcessId;

/// The first label of the hosts that serve the secure paths of `process`: package and publisher joined by `-`, with
/// `-` for everything that is not alphanumeric. `chess:chess:template.os` becomes `chess-template-os`.
pub fn secure_subdomain(process: &ProcessId) -> String {
    let joined = [process.package(), "-", process.publisher()].concat();
    joined.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_and_publisher() {
        let label = |id: &str| secure_subdomain(&id.parse().unwrap());
        assert_eq!(label("chess:chess:template.os"), "chess-template-os");
        assert_eq!(label("other:chess:template.os"), "chess-template-os");
        assert_eq!(label("a_b:c_d:e.f.os"), "c-d-e-f-os");
    }
}
