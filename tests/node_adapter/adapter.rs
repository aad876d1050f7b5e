use lib::core as theirs; // Hyperdrive: lib::types::core
use pushring::node as ours;

/// The node, as its HTTP server needs it.
pub struct Adapter {
    pub our_node: String,
    pub jwt_secret: Vec<u8>,
}

impl ours::Host for Adapter {
    type Message = theirs::KernelMessage;
    type Print = theirs::Printout;

    fn to_ours(&self, message: theirs::KernelMessage) -> Option<ours::KernelMessage> {
        Some(ours::KernelMessage {
            id: message.id,
            source: address_in(message.source)?,
            target: address_in(message.target)?,
            rsvp: message.rsvp.and_then(address_in),
            message: match message.message {
                theirs::Message::Request(request) => ours::Message::Request(ours::Request {
                    inherit: request.inherit,
                    expects_response: request.expects_response,
                    body: request.body,
                    metadata: request.metadata,
                    capabilities: Vec::new(), // The HTTP server has no use for them.
                }),
                theirs::Message::Response((response, context)) => {
                    let (inherit, body, metadata) = (response.inherit, response.body, response.metadata);
                    ours::Message::Response((
                        ours::Response { inherit, body, metadata, capabilities: Vec::new() },
                        context,
                    ))
                }
            },
            // The blob's bytes are moved, never copied.
            lazy_load_blob: message
                .lazy_load_blob
                .map(|blob| ours::LazyLoadBlob { mime: blob.mime, bytes: blob.bytes }),
        })
    }

    fn to_node(&self, message: ours::KernelMessage) -> theirs::KernelMessage {
        theirs::KernelMessage {
            id: message.id,
            source: address_out(message.source),
            target: address_out(message.target),
            rsvp: message.rsvp.map(address_out),
            message: match message.message {
                ours::Message::Request(request) => theirs::Message::Request(theirs::Request {
                    inherit: request.inherit,
                    expects_response: request.expects_response,
                    body: request.body,
                    metadata: request.metadata,
                    capabilities: Vec::new(),
                }),
                ours::Message::Response((response, context)) => {
                    let (inherit, body, metadata) = (response.inherit, response.body, response.metadata);
                    theirs::Message::Response((
                        theirs::Response { inherit, body, metadata, capabilities: Vec::new() },
                        context,
                    ))
                }
            },
            lazy_load_blob: message
                .lazy_load_blob
                .map(|blob| theirs::LazyLoadBlob { mime: blob.mime, bytes: blob.bytes }),
        }
    }

    fn print(&self, text: String) -> theirs::Printout {
        theirs::Printout { verbosity: 0, content: text }
    }

    /// Runs on a thread of its own, and may take its time. `Ok(None)`: the password is wrong.
    fn login(
        &self,
        keyfile: &[u8],
        password_hash: &str,
        subdomain: Option<&ours::ProcessId>,
    ) -> Result<Option<String>, String> {
        if keygen::decode_keyfile(keyfile, password_hash).is_err() {
            return Ok(None);
        }
        let subdomain = subdomain.map(process_out);
        let token = keygen::generate_jwt(&self.jwt_secret, &self.our_node, &subdomain);
        token.map(Some).ok_or_else(|| "no token could be made".to_string())
    }
}

/// None: a source that has no address cannot be answered either.
fn address_in(address: theirs::Address) -> Option<ours::Address> {
    let theirs::Address { node, process } = address;
    let process = ours::ProcessId::new(process.process(), process.package(), process.publisher()).ok()?;
    Some(ours::Address::new(node, process))
}

fn address_out(address: ours::Address) -> theirs::Address {
    let process = process_out(&address.process);
    theirs::Address { node: address.node, process }
}

fn process_out(process: &ours::ProcessId) -> theirs::ProcessId {
    theirs::ProcessId::new(Some(process.process()), process.package(), process.publisher())
}
