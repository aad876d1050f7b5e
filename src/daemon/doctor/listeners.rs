//! Which program listens on a port of TCP, as far as this user may see (proc(5)).

use std::fs;
use std::path::Path;

/// The state of a socket that listens, in `/proc/net/tcp`.
const LISTENING: &str = "0A";

/// The name and the process of the program that listens on `port`. `root` is `/`.
pub(super) fn program(root: &Path, port: u16) -> Option<(String, u32)> {
    let sockets: Vec<String> = ["proc/net/tcp", "proc/net/tcp6"]
        .iter()
        .flat_map(|file| listening(&fs::read_to_string(root.join(file)).unwrap_or_default(), port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let processes = fs::read_dir(root.join("proc")).ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.find(|pid| has_any(&root.join(format!("proc/{pid}/fd")), &sockets))?;
    let name = fs::read_to_string(root.join(format!("proc/{pid}/comm"))).ok()?;
    Some((name.trim_end().to_owned(), pid))
}

/// The inodes of sockets that listen on `port`.
fn listening(table: &str, port: u16) -> Vec<String> {
    let row = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let is_it = *state == LISTENING && local.ends_with(&format!(":{port:04X}"));
        is_it.then(|| (*inode).to_owned())
    };
    table.lines().skip(1).filter_map(row).collect()
}

/// Returns whether a descriptor of that directory is one of `sockets`.
fn has_any(descriptors: &Path, sockets: &[String]) -> bool {
    // Another user's cannot be read.
    let Ok(entries) = fs::read_dir(descriptors) else { return false };
    let mut targets = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.any(|target| target.to_str().is_some_and(|target| sockets.iter().any(|socket| socket == target)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_that_listens_is_this_one() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (_, pid) = program(Path::new("/"), listener.local_addr().unwrap().port()).unwrap();
        assert_eq!(pid, std::process::id());
        let table = "  sl  local_address rem_address st\n   0: 0100007F:1F90 00000000:0000 0A 0:0 00:0 0 0 0 4711 1\n   \
                     1: 0100007F:1F90 0100007F:0050 01 0:0 00:0 0 0 0 4712 1\n";
        assert_eq!(listening(table, 8080), ["4711"]);
        assert!(listening(table, 80).is_empty());
    }
}
