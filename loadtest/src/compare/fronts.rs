//! Proxies that end TLS in front of a server, as its users have them: programs of this machine, with settings of ours.
//!
//! Invariant: one worker or thread each, on the server's CPUs, so that both together are what is measured.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// A proxy that ends TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Front {
    /// nginx, one worker.
    Nginx,
    /// HAProxy, one thread.
    Haproxy,
}

impl Front {
    /// Its name, and that of its program.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }

    /// Its program, if it is installed.
    pub(crate) fn program(self) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let places = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
        places.map(|place| place.join(self.name())).find(|program| program.is_file())
    }

    /// The option before the settings file on its command line.
    pub(crate) fn flag(self) -> &'static str {
        match self {
            Self::Nginx => "-c",
            Self::Haproxy => "-f",
        }
    }

    /// Its settings: TLS 1.3 with X25519 on `listen`, with the chain and key in `pem`; everything goes to `server`.
    pub(crate) fn settings(self, listen: SocketAddr, server: SocketAddr, pem: &Path, directory: &Path) -> String {
        let (pem, directory) = (pem.display(), directory.display());
        match self {
            Self::Nginx => format!(
                "daemon off;\nworker_processes 1;\nworker_rlimit_nofile 200000;\npid {directory}/pid;\n\
                 error_log {directory}/error.log error;\nevents {{ worker_connections 65536; }}\nhttp {{\n\
                 access_log off;\nclient_body_temp_path {directory}/body;\nproxy_temp_path {directory}/proxy;\n\
                 fastcgi_temp_path {directory}/fastcgi;\nuwsgi_temp_path {directory}/uwsgi;\n\
                 scgi_temp_path {directory}/scgi;\n\
                 map $http_upgrade $connection_upgrade {{ default upgrade; \"\" \"\"; }}\n\
                 upstream pushring {{ server {server} max_fails=0; keepalive 64; }}\n\
                 server {{\nlisten {listen} ssl backlog=4096;\nssl_certificate {pem};\nssl_certificate_key {pem};\n\
                 ssl_protocols TLSv1.3;\nssl_ecdh_curve X25519;\nlocation / {{\nproxy_pass http://pushring;\n\
                 proxy_http_version 1.1;\nproxy_set_header Host $http_host;\nproxy_set_header Upgrade $http_upgrade;\n\
                 proxy_set_header Connection $connection_upgrade;\nproxy_read_timeout 75s;\nproxy_buffering off;\n\
                 }}\n}}\n}}\n"
            ),
            Self::Haproxy => format!(
                "global\n nbthread 1\ndefaults\n mode http\n timeout connect 5s\n timeout client 60s\n \
                 timeout server 60s\n timeout tunnel 75s\nfrontend web\n bind {listen} ssl crt {pem} alpn http/1.1 \
                 ssl-min-ver TLSv1.3 curves X25519 backlog 4096\n default_backend pushring\n\
                 backend pushring\n server one {server}\n"
            ),
        }
    }
}
