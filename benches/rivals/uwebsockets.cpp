// What `pushring demo` answers, by uWebSockets: see README.md. One thread, no compression, no pings, no limit of backpressure.
#include "App.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>
#include <unistd.h>
#include <unordered_map>

#ifdef TLS
constexpr bool SECURE = true;
using App = uWS::SSLApp;
#else
constexpr bool SECURE = false;
using App = uWS::App;
#endif

struct Channel {
    uint32_t id;
    std::string room;
};
using Socket = uWS::WebSocket<SECURE, true, Channel>;
using Behavior = App::WebSocketBehavior<Channel>;

static uint32_t next_id = 1;
static std::unordered_map<uint32_t, Socket *> channels;

static Behavior base() {
    Behavior behavior;
    behavior.compression = uWS::DISABLED;
    behavior.maxPayloadLength = 16 * 1024 * 1024;
    behavior.maxBackpressure = 1024 * 1024 * 1024;
    behavior.closeOnBackpressureLimit = false;
    behavior.idleTimeout = 0;
    behavior.sendPingsAutomatically = false;
    return behavior;
}

static Behavior echo() {
    auto behavior = base();
    behavior.message = [](auto *socket, std::string_view message, uWS::OpCode code) { socket->send(message, code); };
    return behavior;
}

static Behavior sink() {
    auto behavior = base();
    behavior.message = [](auto *socket, std::string_view message, uWS::OpCode code) {
        if (code == uWS::BINARY) socket->send(message, code);
    };
    return behavior;
}

static Behavior relay() {
    auto behavior = base();
    behavior.open = [](auto *socket) { socket->subscribe("all"); };
    behavior.message = [](auto *socket, std::string_view message, uWS::OpCode code) { socket->publish("all", message, code); };
    return behavior;
}

static Behavior rooms() {
    auto behavior = base();
    behavior.upgrade = [](auto *response, auto *request, auto *context) {
        response->template upgrade<Channel>({0, std::string(request->getUrl())}, request->getHeader("sec-websocket-key"),
                                            request->getHeader("sec-websocket-protocol"),
                                            request->getHeader("sec-websocket-extensions"), context);
    };
    behavior.open = [](auto *socket) { socket->subscribe(socket->getUserData()->room); };
    behavior.message = [](auto *socket, std::string_view message, uWS::OpCode code) {
        socket->publish(socket->getUserData()->room, message, code);
    };
    return behavior;
}

static Behavior unicast() {
    auto behavior = base();
    behavior.open = [](auto *socket) {
        auto id = socket->getUserData()->id = next_id++;
        channels[id] = socket;
        socket->send("{\"channel_id\":" + std::to_string(id) + "}", uWS::TEXT);
    };
    behavior.message = [](auto *, std::string_view message, uWS::OpCode code) {
        uint32_t id;
        if (message.size() < sizeof id) return;
        memcpy(&id, message.data(), sizeof id);
        if (auto found = channels.find(id); found != channels.end()) found->second->send(message.substr(sizeof id), code);
    };
    behavior.close = [](auto *socket, int, std::string_view) { channels.erase(socket->getUserData()->id); };
    return behavior;
}

int main() {
    signal(SIGTERM, [](int) { _exit(0); });
#ifdef TLS
    App app({.key_file_name = getenv("KEY"), .cert_file_name = getenv("CERT")});
#else
    App app;
#endif
    app.ws<Channel>("/echo:pushring:sys/", echo())
        .ws<Channel>("/threaded-echo:pushring:sys/", echo())
        .ws<Channel>("/sink:pushring:sys/", sink())
        .ws<Channel>("/relay:pushring:sys/", relay())
        .ws<Channel>("/rooms:pushring:sys/*", rooms())
        .ws<Channel>("/unicast:pushring:sys/", unicast())
        .listen("127.0.0.1", 0, [](auto *socket) {
            if (!socket) _exit(1);
            printf("listening on http://127.0.0.1:%d\n", us_socket_local_port(SECURE, (us_socket_t *)socket));
            fflush(stdout);
        })
        .run();
}
