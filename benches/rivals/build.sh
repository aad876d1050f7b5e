#!/usr/bin/env bash
# Builds the rivals of README.md that can be built here.
#
# usage: benches/rivals/build.sh UWEBSOCKETS [DIRECTORY]     a checkout of uWebSockets with its submodules; target/rivals
# BUN names bun's program, if it is not on the PATH.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
checkout=$(cd "$1" && pwd)
out=${2:-target/rivals}
mkdir -p "$out"
out=$(cd "$out" && pwd)

# Builds uSockets and the server with the flags that follow, into NAME.
server() {
    local name=$1 objects=$out/$1.objects
    shift
    mkdir -p "$objects"
    (cd "$objects" && gcc -w -std=c11 -O3 -march=native -flto=auto "$@" -I"$sockets/src" -c \
        "$sockets"/src/*.c "$sockets"/src/eventing/*.c "$sockets"/src/crypto/*.c)
    g++ -w -std=c++20 -O3 -march=native -flto=auto "$@" -DUWS_NO_ZLIB -I"$checkout/src" -I"$sockets/src" \
        "$here/uwebsockets.cpp" "${extra[@]}" "$objects"/*.o -o "$out/$name" "${libraries[@]}"
}

# A program that starts the rest of its line with a certificate, which it makes beside itself where none is left.
with_certificate() {
    local name=$1
    shift
    cat >"$out/$name" <<END
#!/usr/bin/env bash
set -euo pipefail
export CERT=$out/certificate.pem KEY=$out/key.pem
openssl x509 -noout -checkend 3600 -in "\$CERT" >/dev/null 2>&1 || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout "\$KEY" -out "\$CERT" 2>/dev/null
exec $*
END
    chmod +x "$out/$name"
}

sockets=$checkout/uSockets
extra=() libraries=()
server uwebsockets -DLIBUS_NO_SSL
cc=(-DLIBUS_USE_OPENSSL)
libraries=(-lssl -lcrypto)
[ -e "$sockets/src/crypto/sni_tree.cpp" ] && extra=("$sockets/src/crypto/sni_tree.cpp")
server uwebsockets-openssl "${cc[@]}" -DTLS
with_certificate uwebsockets-tls "$out/uwebsockets-openssl"

if bun=${BUN:-$(command -v bun)}; then
    printf '#!/bin/sh\nexec %s %s\n' "$bun" "$here/bun.js" >"$out/bun"
    chmod +x "$out/bun"
    with_certificate bun-tls "$bun" "$here/bun.js"
else
    echo "bun: left out, for there is none (BUN names it)"
fi
ls -1 "$out" | grep -v objects
