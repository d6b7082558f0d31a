// Node's http agent with keep-alive against a running default server: clients_http.mjs HOST:PORT
import assert from "node:assert";
import http from "node:http";

const [host, port] = process.argv[2].split(":");
const agent = new http.Agent({ keepAlive: true, maxSockets: 4 });
const ports = new Set();

function ask(method, body) {
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
    if (body) request.write(body); // without a length: chunked
    request.end();
  });
}

const text = "this is response from server";
for (let round = 0; round < 50; round++) {
  const answers = await Promise.all([ask("GET"), ask("POST", "x".repeat(20000)), ask("PUT", "y"), ask("GET")]);
  for (const answer of answers) assert.deepStrictEqual(answer, [200, text]);
}
assert.deepStrictEqual(await ask("HEAD"), [200, ""]);
assert.ok(ports.size <= 4, `${ports.size} connections for an agent of 4`);
agent.destroy();
console.log("ok Node http agent");
