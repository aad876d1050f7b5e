import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.WebSocket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.TimeUnit;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

/** Sends one message over TLS 1.3 and prints what comes back: java Echo.java CA.pem URL. */
public class Echo implements WebSocket.Listener {
    static final CompletableFuture<String> HEARD = new CompletableFuture<>();

    @Override
    public CompletionStage<?> onText(WebSocket socket, CharSequence text, boolean isLast) {
        HEARD.complete(text.toString());
        return null;
    }

    public static void main(String[] arguments) throws Exception {
        KeyStore trusted = KeyStore.getInstance(KeyStore.getDefaultType());
        trusted.load(null, null);
        try (var pem = Files.newInputStream(Path.of(arguments[0]))) {
            trusted.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(pem));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(trusted);
        SSLContext context = SSLContext.getInstance("TLSv1.3");
        context.init(null, trust.getTrustManagers(), null);
        WebSocket socket = HttpClient.newBuilder().sslContext(context).build().newWebSocketBuilder()
                .buildAsync(URI.create(arguments[1]), new Echo()).get(60, TimeUnit.SECONDS);
        socket.sendText("from Java", true).get(60, TimeUnit.SECONDS);
        System.out.println("heard " + HEARD.get(60, TimeUnit.SECONDS));
        System.exit(0);
    }
}
