#!/usr/bin/env python3
"""Runs the TLS 1.3 scripts of tlsfuzzer against `pushring serve --tls-listen`.

usage: tests/tlsfuzzer/run.py CHECKOUT [PROGRAM [COUNT]]     a checkout of tlsfuzzer; target/debug/pushring; 30

Each script runs COUNT of its conversations, which it chooses anew each time.

Needs openssl, tlslite-ng 0.9 or later and kyber-py (pip install --pre tlslite-ng kyber-py). A conversation that ends otherwise than the script
expects is a failure, unless DIFFERENT says why it may. Ends with 1 where there is any other.
"""
import pathlib
import re
import subprocess
import sys
import tempfile

# Scripts that do not apply: they need what a server without client certificates, without early data, or one that only
# answers HTTP does not have, or a program of their own.
NOT_OURS = {
    "certificate-request": "no client certificates are asked for",
    "certificate-verify": "no client certificates are asked for",
    "client-certificate-compression": "no client certificates are asked for",
    "post-handshake-auth": "no client certificates are asked for",
    "ecdsa-in-certificate-verify": "no client certificates are asked for",
    "ecdsa-brainpool-in-certificate-verify": "no client certificates are asked for",
    "eddsa-in-certificate-verify": "no client certificates are asked for",
    "mldsa-in-certificate-verify": "no client certificates are asked for",
    "rsapss-signatures": "needs a certificate for RSA-PSS",
    "eddsa": "needs a certificate for Ed25519",
    "ecdsa-support": "needs a certificate for each curve",
    "dhe-shared-secret-padding": "measures OpenSSL's finite fields",
    "minerva": "measures time on a machine that does nothing else",
    "ffdhe-groups": "no finite field groups, which RFC 8446 9.1 does not ask for",
    "ffdhe-sanity": "no finite field groups",
    "ecdhe-brainpool-curves": "no Brainpool curves",
    "psk_dhe_ke": "needs a pre-shared key out of band",
    "psk_ke": "needs a pre-shared key out of band",
    "non-support": "is for servers without TLS 1.3",
    "keyupdate-from-server": "needs a server that is asked to renew its keys",
    "lengths": "needs a server that answers with what it got",
    "certificate-compression": "certificates are not compressed",
}

# Conversations that end otherwise, by script and name, and why that is so.
RUSTLS = "rustls' state machine ends the handshake too, by another alert: "
DIFFERENT = [
    ("0rtt-garbage", "invalid 0-RTT", "early data that was never offered is not skipped"),
    ("connection-abort", "After NewSessionTicket", "waits for one ticket, where two come in one flight"),
    ("crfg-curves", "x448", "the group x448 is not offered, nor asked for by RFC 8446 9.1"),
    ("crfg-curves", "empty x25519", RUSTLS + "decode_error"),
    ("ecdhe-curves", "secp521r1|x448", "groups that are not offered"),
    ("empty-alert", "using handshake keys", RUSTLS + "decode_error"),
    ("finished-plaintext", "Unencrypted Finished", RUSTLS + "bad_record_mac"),
    ("finished", "padding|truncation|empty", RUSTLS + "decrypt_error for a Finished of another length"),
    ("keyshare-omitted", "omitted", RUSTLS + "handshake_failure"),
    ("keyupdate", "multiple KeyUpdate", "more than ten new keys within a second end the connection"),
    ("large-number-of-extensions", "2 to 4119|61464 to 65535", "known extensions without what they must have"),
    ("large-number-of-extensions", "random payload", "a ClientHello of more than 16.5 KiB is refused"),
    ("legacy-version", "version", "legacy_version is not looked at where supported_versions is (RFC 8446 4.1.2)"),
    ("multiple-ccs-messages", "CCS", "a second change_cipher_spec is dropped like the first (RFC 8446 5)"),
    ("mlkem", "secp256r1mlkem768|secp384r1mlkem1024", "of the hybrid groups only x25519mlkem768 is offered"),
    ("obsolete-curves", "", "rustls takes no notice of groups that it does not know, and agrees on one that it does"),
    ("pkcs-signature", "", "handshake_failure comes sealed, behind the ServerHello"),
    ("record-layer-limits", "Finished msg", RUSTLS + "decrypt_error for a Finished that is too long"),
    ("rsa-signatures", "rsa_pss_pss", "handshake_failure comes sealed, behind the ServerHello"),
    ("serverhello-random", "ffdhe|secp521r1|x448", "groups that are not offered"),
    ("session-resumption", "TLS 1.2", "TLS 1.2 is not spoken"),
    ("session-resumption", "PSK_ONLY", "a ticket without a new key exchange is not taken"),
    ("shuffled-extentions", "HRR", "the order of extensions may change between ClientHellos for rustls"),
    ("shuffled-extentions", "unassigned", "known extensions without what they must have"),
    ("signature-algorithms", "only (legacy|undefined)", "handshake_failure comes sealed, behind the ServerHello"),
    ("signature-algorithms", r"duplicated|\d{5} (invalid|methods)", "a ClientHello of more than 16.5 KiB is refused"),
    ("symetric-ciphers", "CCM", "CCM is not offered"),
    ("unrecognised-groups", "ffdhe", "no finite field groups"),
    ("unrecognised-groups", "key_share of size", "a ClientHello of more than 16.5 KiB is refused"),
    ("version-negotiation", "1.2|1.1|1.0|client hello legacy field", "TLS 1.2 is not spoken"),
    ("zero-content-type", "during handshake", "rustls ends without an alert"),
]


def certificate(directory, name, *key):
    chain, secret = directory / f"{name}.pem", directory / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", *key, "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", secret, "-out", chain],
        check=True, stderr=subprocess.DEVNULL)
    secret.chmod(0o600)
    return f"{chain}:{secret}"


def serve(program, directory):
    """The server, and the port of its TLS."""
    pairs = [certificate(directory, "rsa", "-newkey", "rsa:2048"),
             certificate(directory, "ec", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")]
    server = subprocess.Popen(
        [program, "serve", "--listen", "off", "--tls-listen", "127.0.0.1:0", "--tls-certs", ",".join(pairs),
         "--admin-listen", "off", "--control", "off", "--per-ip-exempt", "127.0.0.0/8"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in server.stdout:
        if found := re.search(r"https://127\.0\.0\.1:(\d+)", line):
            return server, found[1]
    sys.exit("the server did not start")


def why_different(script, conversation):
    return next((why for of, name, why in DIFFERENT if of == script and re.search(name, conversation)), None)


def judge(script, output):
    """The conversations that passed, and those that ended otherwise."""
    passed = re.search(r"^PASS: (\d+)", output, re.MULTILINE)
    if not passed:
        return 0, ["the script itself: " + (output.strip().splitlines() or ["no output"])[-1]]
    _, _, failed = output.partition("\nFAILED:\n")
    return int(passed[1]), sorted(set(re.findall(r"^\t'(.*)'$", failed, re.MULTILINE)))


def main():
    checkout = pathlib.Path(sys.argv[1]).resolve()
    program = sys.argv[2] if len(sys.argv) > 2 else "target/debug/pushring"
    count = sys.argv[3] if len(sys.argv) > 3 else "30"
    bad = total = 0
    with tempfile.TemporaryDirectory() as directory:
        server, port = serve(program, pathlib.Path(directory))
        try:
            for path in sorted(checkout.glob("scripts/test-tls13-*.py")):
                script = path.stem.removeprefix("test-tls13-")
                if script in NOT_OURS:
                    print(f"{script}: left out, {NOT_OURS[script]}")
                    continue
                try:
                    done = subprocess.run([sys.executable, path, "-h", "localhost", "-p", port, "-n", count], cwd=checkout,
                                          env={"PYTHONPATH": str(checkout), "PATH": "/usr/bin:/bin"}, text=True,
                                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
                    passed, failed = judge(script, done.stdout)
                except subprocess.TimeoutExpired:
                    passed, failed = 0, ["the script itself: not done within 600 s"]
                wrong = [name for name in failed if not why_different(script, name)]
                total, bad = total + passed, bad + len(wrong)
                print(f"{script}: {passed} as expected, {len(failed) - len(wrong)} different for a reason, {len(wrong)} wrong",
                      flush=True)
                for name in wrong:
                    print(f"    {name}", flush=True)
            if server.poll() is not None:
                print(f"the server ended with {server.returncode}")
                bad += 1
        finally:
            server.kill()
    print(f"conversations as expected: {total}, wrong: {bad}")
    sys.exit(bad > 0)


main()
