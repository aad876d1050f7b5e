use lib::types::core as theirs;
use pushring::node as ours;

/// The node, as its HTTP server needs it. Blobs are moved, never copied.
pub struct Node;

impl ours::Host for Node {
    type Message = theirs::KernelMessage;
    type Print = theirs::Printout;

    fn to_ours(&self, message: theirs::KernelMessage) -> Option<ours::KernelMessage> {
        Some(ours::KernelMessage {
            id: message.id,
            source: address_in(message.source)?,
            target: address_in(message.target)?,
            rsvp: message.rsvp.and_then(address_in),
            message: match message.message {
                theirs::Message::Request(r) => ours::Message::request(r.inherit, r.expects_response, r.body, r.metadata),
                theirs::Message::Response((r, context)) => ours::Message::response(r.inherit, r.body, r.metadata, context),
            },
            lazy_load_blob: message.lazy_load_blob.map(|b| ours::LazyLoadBlob { mime: b.mime, bytes: b.bytes }),
        })
    }

    fn to_node(&self, message: ours::KernelMessage) -> theirs::KernelMessage {
        let capabilities = Vec::new(); // The HTTP server gives none.
        theirs::KernelMessage {
            id: message.id,
            source: address_out(message.source),
            target: address_out(message.target),
            rsvp: message.rsvp.map(address_out),
            message: match message.message {
                ours::Message::Request(ours::Request { inherit, expects_response, body, metadata, .. }) => {
                    theirs::Message::Request(theirs::Request { inherit, expects_response, body, metadata, capabilities })
                }
                ours::Message::Response((ours::Response { inherit, body, metadata, .. }, context)) => {
                    theirs::Message::Response((theirs::Response { inherit, body, metadata, capabilities }, context))
                }
            },
            lazy_load_blob: message.lazy_load_blob.map(|b| theirs::LazyLoadBlob { mime: b.mime, bytes: b.bytes }),
        }
    }

    fn print(&self, verbosity: u8, text: String) -> theirs::Printout {
        theirs::Printout::new(verbosity, theirs::HTTP_SERVER_PROCESS_ID.clone(), text)
    }

    fn is_password(&self, keyfile: &[u8], password_hash: &str) -> bool {
        crate::keygen::decode_keyfile(keyfile, password_hash).is_ok()
    }
}

fn address_in(theirs::Address { node, process: p }: theirs::Address) -> Option<ours::Address> {
    ours::Address::of_parts(node, p.process(), p.package(), p.publisher())
}

fn address_out(ours::Address { node, process: p }: ours::Address) -> theirs::Address {
    theirs::Address { node, process: theirs::ProcessId::new(Some(p.process()), p.package(), p.publisher()) }
}
