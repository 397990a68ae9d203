// Smartpay's Node SDK as published, pointed at the address given: what it got back, as one JSON object.
//
// Usage: node run.mjs API_PREFIX SECRET_KEY PAYMENT_ID

import { createServer } from "node:http";
import { once } from "node:events";
import SmartPay from "@smartpay/sdk-node";

const [apiPrefix, secretKey, payment] = process.argv.slice(2);
const smartpay = new SmartPay(secretKey, { apiPrefix });

/** What a refused call tells: the SDK throws its own error, with Smartpay's code. */
const refusal = (call) => call.then(() => null, ({ statusCode, errorCode }) => ({ statusCode, errorCode }));

/** The next delivery to an address of ours, as received: headers and the body's text. */
async function receiver() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const delivery = once(server, "request").then(async ([request, response]) => {
    const body = Buffer.concat(await request.toArray()).toString("utf8");
    response.end();
    server.close();
    return { headers: request.headers, body };
  });
  return { url: `http://127.0.0.1:${server.address().port}/hook`, delivery };
}

const first = await smartpay.listOrders({ maxResults: 5 });
const second = await smartpay.listOrders({ maxResults: 5, pageToken: first.nextPageToken });
const plain = await smartpay.getOrder({ id: first.data[0].id });
const expanded = await smartpay.getOrder({ id: first.data[0].id, expand: "all" });

const { url, delivery } = await receiver();
const endpoint = await smartpay.createWebhookEndpoint({ url, eventSubscriptions: ["refund.created"] });

const wish = { payment, amount: 100, currency: "JPY", reason: "requested_by_customer" };
const idempotencyKey = "from-the-official-sdk";
const refund = await smartpay.createRefund({ ...wish, reference: "sdk-1", idempotencyKey });
const replayed = await smartpay.createRefund({ ...wish, reference: "sdk-1", idempotencyKey });
const read = await smartpay.getRefund({ id: refund.id });
const tooMuch = await refusal(smartpay.createRefund({ ...wish, amount: 10_000_000 }));
const wrongKey = await refusal(new SmartPay("sk_live_another", { apiPrefix }).getOrder({ id: plain.id }));
const refunds = await smartpay.listRefunds({ maxResults: 1 });
const patched = await smartpay.updateRefund({ id: refund.id, reference: "sdk-2" });

const { headers, body } = await delivery;
const verified = (text) =>
  SmartPay.verifyWebhookSignature({
    data: `${headers["smartpay-signature-timestamp"]}.${text}`,
    secret: endpoint.signingSecret,
    signature: headers["smartpay-signature"],
  });

console.log(
  JSON.stringify({
    first,
    second,
    plain,
    expanded,
    endpoint,
    refund,
    replayed,
    read,
    tooMuch,
    wrongKey,
    refunds,
    patched,
    event: JSON.parse(body),
    subscription: headers["smartpay-subscription-id"],
    verified: verified(body),
    verifiedWhenForged: verified(body.replace("100", "900")),
  }),
);
