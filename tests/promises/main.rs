//! The promises that need no process of their own, one file for each, linked as one program.
//!
//! A test belongs into a program of its own beside this one only where it changes or measures its whole process: a
//! counting allocator, the process' log, a system-call filter, a model checker.
#![allow(missing_docs)]

#[path = "../../examples/chat.rs"]
#[allow(dead_code)]
mod chat;
#[path = "../link_support/mod.rs"]
mod link_support;
#[path = "../node_support/mod.rs"]
mod node_support;
#[allow(dead_code)]
#[path = "../../fuzz/src/lib.rs"]
mod properties;
#[path = "../proto_support/mod.rs"]
mod proto_support;
#[path = "../../examples/quickstart.rs"]
#[allow(dead_code)]
mod quickstart;
#[path = "../../examples/quickstart_process.rs"]
#[allow(dead_code)]
mod quickstart_process;
#[path = "../../examples/on_shards.rs"]
#[allow(dead_code)]
mod rooms;
#[path = "../shard_support/mod.rs"]
mod shard_support;
#[path = "../support/mod.rs"]
mod support;

mod a_drain_is_paced;
mod a_full_budget_leaves_room_for_newcomers;
mod a_stop_with_many_paths;
mod a_stuck_client_delays_nobody_in_a_node;
mod acme;
mod admin_listener;
mod admission_limits;
mod attempts_are_tests;
mod bad_input_in_a_node;
mod broadcast_by_path;
mod broadcast_leaves_room_for_others;
mod budget_closes_1013;
mod calls_that_may_wait;
mod chat_example;
mod clients_wait_until_it_is_open;
mod close_codes_are_documented;
mod control_socket;
mod daemon;
mod deflate;
mod deflate_contexts;
mod deflate_takeover;
mod demo_processes;
mod differential_tungstenite;
mod disconnects_are_explained;
mod doctor;
mod doors_are_shared;
mod embedding;
mod event_streams;
mod fleet;
mod fleet_api;
mod fleet_compose;
mod fleet_guests;
mod fleet_holds_up_no_process;
mod fleet_hostile;
mod fleet_resume;
mod fleet_rolling_restart;
mod fleet_servers;
mod flush_takes_what_send_takes;
mod forged_tokens;
mod fuzz_corpus_replay;
mod gateway_login_page;
mod golden_replay;
mod golden_types;
mod half_closed;
mod hostile_clients;
mod hostile_http;
mod http_server_conforms;
mod http_strictness;
mod hub_authority;
mod hub_obeys_tokens;
mod hub_secrets_stay_out_of_logs;
mod hub_webhooks;
mod ids_not_reused;
mod js_client;
mod killed_daemon;
mod layering;
mod leavers_are_let_go;
mod limits_are_documented;
mod link_daemon;
mod link_kernel;
mod link_kernel_outlives_daemons;
mod link_over_tls;
mod link_processes;
mod link_reattach;
mod malformed_frames;
mod malformed_upgrades;
mod memory_budget;
mod memory_groups_are_survived;
mod messages_where_they_lie;
mod no_shard_dies_alone;
mod node_over_tls;
mod node_server;
mod nodes_over_a_link;
mod nodes_survive_memory_groups;
mod on_shards;
mod one_client_does_not_fill_a_queue;
mod opened_once_closed_once;
mod operations_page;
mod operators_hear_what_mends_it;
mod order_per_channel;
mod out_of_descriptors;
mod outcomes_and_stop;
mod parity_is_proved;
mod plain_requests_are_sent_on;
mod policies;
mod process_backpressure;
mod process_on_broker;
mod process_panic_is_contained;
mod promises_of_a_node;
mod proxy_protocol;
mod published_libraries;
mod publishing_over_http;
mod push_to_strangers_reaches_nobody;
mod pushes_from_other_nodes;
mod pushes_to_many_in_a_node;
mod python_client;
mod quickstart_runs_as_it_stands;
mod ready_set_wakes_its_waiter;
mod refusals_are_said_in_words;
mod registration;
mod resume;
mod second_broker_is_refused;
mod senders_hear_their_answer;
mod service_manager;
mod settings_are_read_again;
mod shape;
mod silent_peers_shut_nobody_out;
mod slow_reader_delays_nobody;
mod slowloris;
mod split_invariance;
mod strangers_take_no_history;
mod the_log_is_no_danger;
mod tls_is_spoken;
mod topics;
mod topics_in_a_node;
mod vanished_peers;
