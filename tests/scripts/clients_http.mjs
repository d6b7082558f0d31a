// Tests a running default server with Node's keep-alive http agent: clients_http.mjs HOST:PORT
import assert from "node:assert";
import http from "node:http";

const [host, port] = process.argv[2].split(":");
const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
const ports = new Set();

function send(method, body) {
  return new Promise((resolve, reject) => {
    const request = http.request({ host, port, agent, method, path: "/", timeout: 10000 }, (response) => {
      ports.add(response.socket.localPort);
      let text = "";
      response.setEncoding("utf8");
      response.on("data", (piece) => (text += piece));
      response.on("end", () => resolve([response.statusCode, text]));
    });
    request.on("error", reject);
    request.on("timeout", () => request.destroy(new Error("timed out")));
    if (body) request.write(body); // no Content-Length, so chunked
    request.end();
  });
}

const text = "this is response from server";
for (let round = 0; round < 50; round++) {
  const responses = await Promise.all([send("GET"), send("POST", "x".repeat(20000)), send("PUT", "y"), send("GET")]);
  for (const response of responses) assert.deepStrictEqual(response, [200, text]);
}
assert.deepStrictEqual(await send("HEAD"), [200, ""]);
assert.ok(ports.size <= 4, `${ports.size} connections for an agent of 4`);
agent.destroy();
console.log("ok Node http agent");
