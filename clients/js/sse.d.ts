/** For `connect(url, { fallback: EventStream })`: an event stream where WebSockets do not come through. */
export class EventStream {
  constructor(url: string | URL, protocols: string[], topics?: string[]);
}
