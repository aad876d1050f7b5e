/** What can be sent, and what is received: text, or an ArrayBuffer for Binary. */
export type Data = string | ArrayBuffer | ArrayBufferView | Blob;

/** What a text that is no JSON, or any JSON, may be. */
export type Json = string | number | boolean | null | Json[] | { [name: string]: Json };

/** Of a registration on `/`, as `@kinode/client-api` sends it. */
export interface Registration {
  target_process: string;
  auth_token: string;
}

export interface Options {
  /** A message of the process, each once and in order. */
  onMessage?(data: string | ArrayBuffer): void;
  /**
   * So many messages are missing here; `null`: nobody knows how many, and the stream begins anew. `reason` is `dropped`,
   * `trimmed`, `expired`, `unknown`, `foreign`, `elsewhere`, `size` or `closed`.
   */
  onGap?(count: number | null, reason: string): void;
  /** So many messages of ours may not have come. */
  onLost?(count: number): void;
  /** There is a connection; `resumed`: the channel is the one from before. `id` is null with `resume: false`. */
  onOpen?(open: { id: number | null; resumed: boolean }): void;
  /** A connection was closed (1006: without a close frame), and another is opened soon. */
  onDown?(code: number, reason: string): void;
  /** The next attempt is so far away. */
  onRetry?(waitMs: number): void;
  /**
   * The login has ended (4401): true if there is a new one, and it is worth another attempt. One that fails is called again after
   * the next attempt, which comes after a pause like any other. There is no attempt until it has answered.
   */
  onUnauthorized?(): boolean | Promise<boolean>;
  /** The channel has ended for good. Nothing is told behind it. */
  onClose?(code: number, reason: string): void;
  /**
   * The hub says no to something that was not asked for by a promise: a message that nobody hears; or a subscription has ended,
   * since `topic` may not be subscribed to once again, or a new token does not allow it. Also where `register`, `protocols` or
   * the address fails for another connection: what the error says, which goes to the console without this.
   */
  onError?(why: string, topic?: string): void;
  /**
   * Whether the channel outlives its connection (`pushring.1`) [true, unless `register`]. False for paths that are bound without
   * `resume`: then a lost connection is a new channel, and what is on its way is lost unseen.
   */
  resume?: boolean;
  /** Registers on `/` for a process, with a new registration for each connection if it is a function. Where that fails there is
   * another attempt after `helloMs`; likewise where `protocols` or the address fails. */
  register?: Registration | (() => Registration | Promise<Registration>);
  /** Subprotocols to offer besides, such as `bearer.TOKEN`. */
  protocols?: string[] | (() => string[]);
  /** The first pause is at most so long [500]; it doubles with each attempt, up to `capMs` [30,000]. */
  baseMs?: number;
  capMs?: number;
  /** A connection that says nothing for so long is given up [10,000]. */
  helloMs?: number;
  /**
   * A connection on which nothing was heard for one to two times so long is asked whether it still works, and given up where there
   * is no answer in as long again [15,000]. Browsers say nothing of a network that is gone where nothing is sent. With `resume`.
   */
  beatMs?: number;
  /** What was received is acknowledged after 64 messages, or so long [5,000]. */
  ackMs?: number;
  /** What is kept of our own messages until the server has them [1,000, and 1 MiB; of a text the bytes of its UTF-8]. */
  outboxMessagesMax?: number;
  outboxBytesMax?: number;
  /** `EventStream` of `@pushring/client/sse`: used where two upgrades in a row have failed and none has ever succeeded. */
  fallback?: unknown;
  /** Where the platform has none, or in tests. */
  WebSocket?: unknown;
  random?(): number;
}

export class Channel {
  constructor(url: string | URL | (() => string | URL), options: Options);
  /** Its number, once the server has said it. */
  readonly id: number | null;
  /** Whether messages go out at once. */
  readonly isOpen: boolean;
  /** Sends now, or as soon as there is a connection; bytes are copied. False: the outbox is full, and nothing was sent. */
  send(data: Data): boolean;
  /**
   * At the hub: what is published to a topic goes to `onMessage`, as it was published (text, JSON, or an ArrayBuffer). It lasts
   * until `unsubscribe`, over new channels too. Rejected with the hub's reason: `forbidden`, `topic`, `too_many`, `later`. Tokens that
   * name `topics` bring raw messages; do not mix the two where publishers are not trusted, since a text can look like this.
   */
  subscribe(topic: string, onMessage: (data: Json | ArrayBuffer, topic: string) => void): Promise<unknown>;
  unsubscribe(topic: string): Promise<unknown>;
  /** At the hub. Rejected with the hub's reason, or `lost`: the channel is gone, and whether it came is not known. Over a lost connection it
   * waits: the hub says again what it has answered, and what is not among that is published once more. */
  publish(topic: string, data: Json): Promise<unknown>;
  /** At the hub: a new token of the same user. */
  renew(token: string): Promise<unknown>;
  /** Ends the channel for good. */
  close(code?: number, reason?: string): void;
}

/** Opens a channel that goes on after sleep, network changes and lost connections. */
export function connect(url: string | URL | (() => string | URL), options?: Options): Channel;
