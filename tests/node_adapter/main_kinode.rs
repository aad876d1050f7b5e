/// The part of a node's `main` from where it spawns its tasks; `quit` ends it as its terminal does.
#[allow(unused_variables, reason = "Kinode has no such flag")]
async fn main(
    http_server_receiver: MessageReceiver,
    kernel_message_sender: MessageSender,
    print_sender: PrintSender,
    quit: impl Future<Output = ()>,
) -> String {
    let our = Identity { name: NODE.to_string() };
    let (encoded_keyfile, http_server_port, expose_local) = (b"0xfeed".to_vec(), 0_u16, false);
    let decoded_keyfile = decode_keyfile(&encoded_keyfile, "0xfeed").unwrap();
    let mut tasks = tokio::task::JoinSet::<anyhow::Result<()>>::new();
    // Where a node spawns its own server.
    let (http_server, serving) = pushring::node::NodeServer::new(pushring::node::NodeParts {
        host: Node,
        our_node: our.name.clone(),
        dialect: pushring::node::Dialect::Kinode,
        listen: ([0, 0, 0, 0], http_server_port).into(),
        keyfile: encoded_keyfile,
        jwt_secret: decoded_keyfile.jwt_secret_bytes.clone(),
        from_kernel: http_server_receiver,
        to_kernel: kernel_message_sender.clone(),
        prints: print_sender.clone(),
        expose_local: true,
        control: None, // Or a path, at which `pushring stats --control PATH` asks.
        config: pushring::node::config(),
    });
    tasks.spawn(async { Ok(serving.await?) });
    // Shown so far.
    let quit_msg: String = tokio::select! {
        Some(Ok(res)) = tasks.join_next() => match res {
            Ok(()) => "graceful exit".into(),
            Err(e) => format!("runtime crash: {e:?}"),
        },
        () = quit => "graceful exit".into(),
    };
    // Where a node ends its tasks.
    tasks.shutdown().await;
    http_server.shutdown(std::time::Duration::from_secs(5)).await;
    // Shown so far.
    quit_msg
}
