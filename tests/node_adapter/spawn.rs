    tokio::spawn(ours::http_server(ours::Parts {
        host: Adapter { our_node: our_name.clone(), jwt_secret: jwt_secret_bytes.clone() },
        our_node: our_name,
        dialect: ours::Dialect::Hyperdrive, // or Kinode: names of cookies and fields, and WebSocketOpen
        listen: ([0, 0, 0, 0], our_port).into(),
        keyfile: encoded_keyfile,
        jwt_secret: jwt_secret_bytes,
        from_kernel: recv_in_server,  // mpsc::Receiver<KernelMessage>
        to_kernel: send_to_loop,      // mpsc::Sender<KernelMessage>
        prints: print_sender,         // mpsc::Sender<Printout>
        expose_local,                 // Kinode: true
        control: None,                // or a path, at which `pushring stats --control PATH` asks
        config: ours::config(),       // shards, limits, policies, proxies, origins
    }))
