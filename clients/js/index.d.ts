/** What can be sent, and what is received: text, or an ArrayBuffer for Binary. */
export type Data = string | ArrayBuffer | ArrayBufferView;

export interface Options {
  /** A message of the process, each once and in order. */
  onMessage?(data: string | ArrayBuffer): void;
  /**
   * So many messages are missing here; `null`: nobody knows how many, and the stream begins anew. `reason` is `dropped`,
   * `trimmed`, `expired`, `unknown`, `foreign`, `elsewhere` or `closed`.
   */
  onGap?(count: number | null, reason: string): void;
  /** So many messages of ours may not have come. */
  onLost?(count: number): void;
  /** There is a connection; `resumed` tells that the channel is the one from before. */
  onOpen?(open: { id: number; resumed: boolean }): void;
  /** A close frame ended the channel, and another is opened soon. */
  onDown?(code: number, reason: string): void;
  /** The next attempt is so far away. */
  onRetry?(waitMs: number): void;
  /** The login has ended (4401): true if there is a new one, and it is worth another attempt. */
  onUnauthorized?(): boolean | Promise<boolean>;
  /** The channel has ended for good. */
  onClose?(code: number, reason: string): void;
  /** Subprotocols to offer besides, such as `bearer.TOKEN`. */
  protocols?: string[] | (() => string[]);
  /** The first pause is at most so long [500]; it doubles with each attempt, up to `capMs` [30,000]. */
  baseMs?: number;
  capMs?: number;
  /** A connection that says nothing for so long is given up [10,000]. */
  helloMs?: number;
  /** What was received is acknowledged after 64 messages, or so long [5,000]. */
  ackMs?: number;
  /** What is kept of our own messages until the server has them [1,000, and 1 MiB]. */
  outboxMessagesMax?: number;
  outboxBytesMax?: number;
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
  /** Sends now, or as soon as there is a connection. False: the outbox is full, and nothing was sent. */
  send(data: Data): boolean;
  /** Ends the channel for good. */
  close(code?: number, reason?: string): void;
}

/** Opens a channel that goes on after sleep, network changes and lost connections. */
export function connect(url: string | URL | (() => string | URL), options?: Options): Channel;
