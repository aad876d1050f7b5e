use lib::types::core as theirs;

pushring::node_host! {
    /// The node, as its HTTP server needs it.
    pub struct Node of theirs;
    print: |verbosity, text| theirs::Printout { verbosity, content: text },
    is_password: |keyfile, password_hash| crate::keygen::decode_keyfile(keyfile, password_hash).is_ok(),
}
