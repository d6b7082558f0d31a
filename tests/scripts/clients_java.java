// Tests a server with the TLS client of Java: clients_java.java PORT WHOAMI-PORT CA OTHER-CA CLIENT.P12 FILE
// PORT serves the directory of FILE. WHOAMI-PORT runs whoami, and requires client certificates.
import java.io.IOException;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.MessageDigest;
import java.security.cert.CertificateFactory;
import java.time.Duration;
import java.util.HexFormat;
import java.util.regex.Pattern;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLHandshakeException;
import javax.net.ssl.SSLParameters;
import javax.net.ssl.SSLSession;
import javax.net.ssl.TrustManagerFactory;

class TlsClient {
    static final char[] PASSWORD = "password".toCharArray();
    static final int REQUESTS = 20;

    static String version;

    public static void main(String[] args) throws Exception {
        var files = URI.create("https://localhost:" + args[0] + "/");
        var whoami = URI.create("https://localhost:" + args[1] + "/");
        Path ca = Path.of(args[2]), otherCa = Path.of(args[3]), identity = Path.of(args[4]), file = Path.of(args[5]);
        for (var tested : new String[] {"TLSv1.3", "TLSv1.2"}) {
            version = tested;
            download(files.resolve(file.getFileName().toString()), context(ca, null), file);
            resume(files, context(ca, null));
            keepAlive(whoami, context(ca, identity));
            upload(whoami, context(ca, identity), file);
            refuse("the server, with another CA", SSLHandshakeException.class, files, context(otherCa, null));
            // In TLS 1.3, the client may send its request before the alert arrives.
            refuse("a client without a certificate", IOException.class, whoami, context(ca, null));
        }
    }

    static SSLContext context(Path ca, Path identity) throws Exception {
        var trusted = KeyStore.getInstance("PKCS12");
        trusted.load(null, null);
        try (var pem = Files.newInputStream(ca)) {
            trusted.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(pem));
        }
        var trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(trusted);
        var keys = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
        keys.init(identity == null ? null : KeyStore.getInstance(identity.toFile(), PASSWORD), PASSWORD);
        var context = SSLContext.getInstance("TLS");
        context.init(keys.getKeyManagers(), trust.getTrustManagers(), null);
        return context;
    }

    /** A client with connections of its own. It offers h2 and http/1.1. */
    static HttpClient client(SSLContext context) {
        var parameters = new SSLParameters(null, new String[] {version});
        return HttpClient.newBuilder().sslContext(context).sslParameters(parameters).build();
    }

    static HttpRequest.Builder request(URI uri) {
        return HttpRequest.newBuilder(uri).timeout(Duration.ofSeconds(60));
    }

    static SSLSession session(HttpResponse<?> response) {
        var session = response.sslSession().get();
        check(response.statusCode() == 200, "status " + response.statusCode());
        check(response.version() == HttpClient.Version.HTTP_1_1, response.version());
        check(session.getProtocol().equals(version), session.getProtocol());
        return session;
    }

    static void download(URI uri, SSLContext context, Path file) throws Exception {
        var got = file.resolveSibling("got");
        session(client(context).send(request(uri).build(), BodyHandlers.ofFile(got)));
        check(Files.mismatch(got, file) == -1, "another file");
        ok("download of " + Files.size(file) + " bytes");
    }

    static void resume(URI uri, SSLContext context) throws Exception {
        var first = session(client(context).send(request(uri).build(), BodyHandlers.ofString()));
        // Sessions of full handshakes are younger than the first.
        while (System.currentTimeMillis() == first.getCreationTime()) {
            Thread.sleep(1);
        }
        var second = session(client(context).send(request(uri).build(), BodyHandlers.ofString()));
        check(second.getCreationTime() == first.getCreationTime(), "a full handshake in place of a resumption");
        ok("resumption");
    }

    static void keepAlive(URI uri, SSLContext context) throws Exception {
        var client = client(context);
        String port = null;
        for (int i = 0; i < REQUESTS; i++) {
            var response = client.send(request(uri).build(), BodyHandlers.ofString());
            session(response);
            check(response.body().contains("CN=Alice"), response.body());
            var now = find("peer: 127\\.0\\.0\\.1:(\\d+)", response.body());
            check(port == null || port.equals(now), "another connection for request " + i);
            port = now;
        }
        ok(REQUESTS + " requests on one connection, with a client certificate");
    }

    static void upload(URI uri, SSLContext context, Path file) throws Exception {
        var digest = MessageDigest.getInstance("SHA-256").digest(Files.readAllBytes(file));
        var upload = request(uri).PUT(BodyPublishers.ofFile(file)).build();
        var response = client(context).send(upload, BodyHandlers.ofString());
        session(response);
        var body = find("body: (.*)", response.body());
        check(body.equals(Files.size(file) + " bytes, SHA-256 " + HexFormat.of().formatHex(digest)), body);
        ok("upload of " + Files.size(file) + " bytes");
    }

    static void refuse(String what, Class<?> expected, URI uri, SSLContext context) throws Exception {
        try {
            var response = client(context).send(request(uri).build(), BodyHandlers.ofString());
            throw new AssertionError(version + ": " + what + " is accepted: " + response);
        } catch (IOException error) {
            check(expected.isInstance(error), error);
            ok("refusal of " + what);
        }
    }

    static String find(String pattern, String text) {
        var matcher = Pattern.compile(pattern).matcher(text);
        check(matcher.find(), text);
        return matcher.group(1);
    }

    static void check(boolean holds, Object message) {
        if (!holds) {
            throw new AssertionError(version + ": " + message);
        }
    }

    static void ok(String what) {
        System.out.println("ok Java, " + version + ": " + what);
    }
}
