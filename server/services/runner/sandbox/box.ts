import { closeSync, constants, openSync, readSync, writeSync } from 'node:fs'
import { Socket } from 'node:net'
import { availableParallelism } from 'node:os'
import type { Group } from './cgroups.ts'
import { errors } from './errors.ts'
import { makeSampler } from './sampler.ts'
import { type BoxFile, filesScript, GREETING } from './script.ts'
import type { Launch, Slot } from './slot.ts'
import type { Limits, Stream } from './types.ts'

// One box: bwrap, and in it a shell as pid 1 that takes orders, runs programs as its children and tells how they ended.
// Being pid 1 it cannot be killed or stopped from within, and it reaps what its programs leave behind. A box goes through these states, and never back:
//   starting  the slot was asked for it; nothing may be assumed
//   warm      the shell answered; no stranger's code has run, so what it reports is true
//   used      a stranger's code runs or ran; reports are hints, only cgroups and the kernel are believed
//   gone      the last process is dead
// A box is used for one execution and thrown away.

const STARTING_MS_MAX = 10_000
const KILLING_MS_MAX = 1_000
const REPORT_BYTES_MAX = 64 * 1024
/** The most a pipe may hold for a user, and so the most that can be in one when its program ends. */
const PIPE_BYTES_MAX = 1024 * 1024

/** Why the sandbox ended a step. */
export type EndReason = 'wall' | 'cpu' | 'memory' | 'processes' | 'flood' | 'cancelled'

export interface StepOutcome {
  code: number | null
  /** Told by the shell; false also where nobody could tell. */
  bySignal: boolean
  endReason: EndReason | null
  ranOutOfMemory: boolean
  cpuMs: number
  wallMs: number
  memoryPeakBytes: number | null
}

export interface StepOrders {
  script: Buffer
  limits: Limits
  onChunk: (stream: Stream, chunk: Buffer) => void
}

export interface Meter {
  /** How often to look, in milliseconds, at the least. */
  readonly intervalMs: number
  setLimits(limits: Limits): void
  restart(): void
  cpuMs(): number | null
  memoryPeakBytes(): number | null
  /** What the box as a whole has too much of, if anything. */
  exceeded(): 'memory' | 'processes' | null
}

export interface BoxOptions {
  slot: Slot
  launch: Launch
  limits: Limits | null
  clock: () => number
}

export class Box {
  readonly ready: Promise<void>
  readonly gone: Promise<void>
  /** All our ends of its pipes are closed, too. */
  readonly released: Promise<void>
  /** It never came to life, and whether something still holds its pipes is unknown. */
  abandoned = false
  state: 'starting' | 'warm' | 'used' | 'gone' = 'starting'

  private readonly options: BoxOptions
  private readonly meter: Meter
  private readonly orders: Orders
  private readonly reports: Socket
  private readonly taps: Record<Stream, Tap>
  private readonly startup = Promise.withResolvers<void>()
  private readonly goneSignal = Promise.withResolvers<void>()
  private readonly releaseSignal = Promise.withResolvers<void>()
  private readonly startTimer: NodeJS.Timeout
  private init: { pid: number; stat: number } | null = null
  private reported = 0
  private partial = ''
  private signalled = false
  private exitCode: number | null = null
  private childrenCpuMs = 0
  private unwritten = ''
  private onReport: ((report: string) => void) | null = null
  private endStep: ((reason: EndReason | null) => void) | null = null

  constructor(options: BoxOptions) {
    this.options = options
    this.ready = this.startup.promise
    this.ready.catch(() => {})
    this.gone = this.goneSignal.promise
    this.released = this.releaseSignal.promise
    const { pipes, group } = options.slot
    this.taps = { stdout: makeTap(pipes.stdout), stderr: makeTap(pipes.stderr) }
    this.reports = new Socket({ fd: openToRead(pipes.reports), readable: true, writable: false })
    this.reports.on('data', chunk => this.hear(chunk))
    this.reports.on('error', () => {})
    this.reports.on('close', () => this.over())
    this.orders = makeOrders(pipes.orders)
    this.meter = group ? meterOf(group) : makeSampler(() => this.init?.pid ?? null)
    if (options.limits) this.meter.setLimits(options.limits)
    this.orders.write(Buffer.from(GREETING))
    this.startTimer = setTimeout(() => this.failStart('it did not answer in time'), STARTING_MS_MAX)
    options.slot.launch(options.launch)
    // Its shell gone, bwrap goes too, perhaps before it could open the pipes.
    options.slot.exited.then(() => this.failStart(options.slot.complaint()))
    options.slot.onRefusal = reason => this.failStart(reason)
  }

  /** Puts files into the box. From here on it is used. */
  async write(files: BoxFile[]): Promise<void> {
    this.state = 'used'
    const { orders, raw } = filesScript(files)
    if (orders.length > 0) this.orders.write(orders)
    if (raw.length === 0) return
    await this.report('send')
    for (const content of raw) this.orders.write(content)
  }

  /** Runs one program to its end, whichever way that comes. */
  async runStep({ script, limits, onChunk }: StepOrders): Promise<StepOutcome> {
    const { clock } = this.options
    this.meter.setLimits(limits)
    this.meter.restart()
    this.signalled = false
    this.exitCode = null
    const cpuMsBefore = this.childrenCpuMs
    for (const stream of ['stdout', 'stderr'] as const) this.taps[stream].onChunk = chunk => onChunk(stream, chunk)
    const startedAt = clock()
    const ended = this.stepEnd()
    this.orders.write(script)
    const endReason = await this.watch(ended, limits, startedAt)
    const wallMs = clock() - startedAt
    for (const stream of ['stdout', 'stderr'] as const) this.taps[stream].drain()
    const ranOutOfMemory = this.meter.exceeded() === 'memory'
    if (this.unwritten && !ranOutOfMemory) throw errors.filesNotWritten(this.unwritten)
    // Whatever a program does to its box, bwrap outlives it and says so.
    if (this.exitCode === null && !endReason && !ranOutOfMemory) throw errors.boxLost()
    return {
      code: this.exitCode,
      bySignal: this.signalled,
      endReason,
      ranOutOfMemory,
      cpuMs: Math.max(this.meter.cpuMs() ?? 0, this.childrenCpuMs - cpuMsBefore),
      wallMs,
      memoryPeakBytes: this.meter.memoryPeakBytes(),
    }
  }

  /** Ends the step that runs, if one does. It is over when all of the box is dead. */
  end(reason: EndReason): void {
    if (this.endStep) this.endStep(reason)
    else this.kill()
  }

  /** SIGKILL to pid 1 of the box, at which the kernel kills all of it, stopped, detached or deaf. */
  kill(): void {
    if (this.state === 'gone') return
    if (!this.init) {
      this.orders.close()
      return
    }
    // The descriptor is of that process, not of that number: reading fails once it is dead, so no other can be hit.
    if (stillThere(this.init.stat)) killQuietly(this.init.pid)
    const { group } = this.options.slot
    const again = setTimeout(() => group?.kill(), KILLING_MS_MAX)
    this.gone.finally(() => clearTimeout(again))
  }

  private stepEnd(): Promise<EndReason | null> {
    const { promise, resolve } = Promise.withResolvers<EndReason | null>()
    if (this.state === 'gone') resolve(null)
    this.endStep = resolve
    return promise
  }

  /** Looks at the meters no more often than something could have run over. */
  private async watch(ended: Promise<EndReason | null>, limits: Limits, startedAt: number): Promise<EndReason | null> {
    const { clock } = this.options
    const deadline = startedAt + limits.wallMs
    let timer: NodeJS.Timeout | undefined
    const look = () => {
      const cpuMs = this.meter.cpuMs() ?? 0
      const over =
        this.meter.exceeded() ?? (cpuMs > limits.cpuMs ? 'cpu' : null) ?? (clock() >= deadline ? 'wall' : null)
      if (over) this.endStep?.(over)
      else schedule(cpuMs)
    }
    const schedule = (cpuMs: number) => {
      const cpuLeftMs = (limits.cpuMs - cpuMs) / availableParallelism()
      timer = setTimeout(look, Math.max(1, Math.min(this.meter.intervalMs, cpuLeftMs + 1, deadline - clock())))
    }
    schedule(0)
    const reason = await ended
    clearTimeout(timer)
    this.endStep = null
    if (reason) {
      this.kill()
      await this.gone
    }
    return reason
  }

  private hear(chunk: Buffer): void {
    this.reported += chunk.length
    if (this.reported > REPORT_BYTES_MAX) {
      // Only a program that found the shell's pipe says so much.
      this.kill()
      return
    }
    const lines = (this.partial + chunk.toString('latin1')).split('\n')
    this.partial = lines.pop() ?? ''
    for (const line of lines) this.hearLine(line)
  }

  private hearLine(line: string): void {
    const times = /^(\d+)m([\d.]+)s (\d+)m([\d.]+)s$/.exec(line)
    if (line.startsWith('{')) this.hearBwrap(line)
    else if (line === 'ready') this.becomeWarm()
    else if (line === 'send') this.onReport?.(line)
    else if (line === 'unwritten') this.unwritten ||= 'its disk or memory was full'
    else if (line.startsWith('exit ')) this.hearExit(Number.parseInt(line.slice(5), 10) & 255)
    else if (times) this.childrenCpuMs = timesToMs(times)
    // The shell names a signal in words ("Segmentation fault"); its number comes with the code.
    else if (line !== '') this.signalled = true
  }

  private hearExit(code: number): void {
    this.exitCode = code
    this.endStep?.(null)
  }

  private hearBwrap(line: string): void {
    const status = parseStatus(line)
    // A program that writes here could name any pid, so it is learnt only before there is one.
    if (this.state === 'starting' && status['child-pid']) this.init = openInit(status['child-pid'])
    const code = status['exit-code']
    if (this.state === 'used' && code !== undefined && this.exitCode === null) {
      // The shell itself is dead, of the OOM killer most likely: nobody is left who could tell a signal from a code.
      this.exitCode = code & 255
      this.signalled = this.exitCode > 128
    }
  }

  private becomeWarm(): void {
    if (this.state !== 'starting') return
    clearTimeout(this.startTimer)
    if (!this.init) {
      this.failStart('bwrap did not name its child')
      return
    }
    this.state = 'warm'
    this.startup.resolve()
  }

  private failStart(reason: string): void {
    if (this.state !== 'starting') return
    this.startup.reject(errors.setupFailed(reason))
    this.kill()
    if (this.init) return
    // Without a pid to kill there is nothing to wait for.
    this.abandoned = true
    this.reports.destroy()
  }

  private over(): void {
    clearTimeout(this.startTimer)
    if (this.state === 'starting') {
      const said: Buffer[] = []
      this.taps.stderr.onChunk = chunk => said.push(chunk)
      this.taps.stderr.drain()
      const reason = Buffer.concat(said).toString().trim() || this.options.slot.complaint() || 'it ended at once'
      this.startup.reject(errors.setupFailed(reason))
    }
    this.state = 'gone'
    this.endStep?.(null)
    this.onReport?.('gone')
    this.goneSignal.resolve()
    void this.release()
  }

  /** The last process dies before all its descriptors are closed; a pipe is free when it has ended on our side too. */
  private async release(): Promise<void> {
    this.orders.close()
    if (this.abandoned) for (const tap of Object.values(this.taps)) tap.close()
    await Promise.all(Object.values(this.taps).map(tap => tap.closed))
    if (this.init) closeSync(this.init.stat)
    this.init = null
    this.releaseSignal.resolve()
  }

  private report(expected: string): Promise<void> {
    return new Promise(resolve => {
      if (this.state === 'gone') return resolve()
      this.onReport = report => {
        if (report === expected || report === 'gone') resolve()
      }
    })
  }
}

function meterOf(group: Group): Meter {
  return {
    // Only the kill of a child, of which the program itself says nothing, has to be looked for.
    intervalMs: 100,
    setLimits: limits => group.setLimits(limits),
    restart: () => group.restart(),
    cpuMs: () => group.cpuMs(),
    memoryPeakBytes: () => group.memoryPeakBytes(),
    exceeded: () => (group.ranOutOfMemory() ? 'memory' : null),
  }
}

/** Chunks are copied out of it before anything else runs. */
const buffer = Buffer.allocUnsafeSlow(64 * 1024)

interface Tap {
  onChunk: ((chunk: Buffer) => void) | null
  /** Takes at once what is in the pipe, without waiting for those who still hold its other end. */
  drain(): void
  close(): void
  /** Resolves when the last of those who held its other end is gone, or we closed ours. */
  readonly closed: Promise<void>
}

function makeTap(path: string): Tap {
  const fd = openToRead(path)
  const socket = new Socket({ fd, readable: true, writable: false })
  const tap: Tap = {
    onChunk: null,
    closed: new Promise(resolve => socket.once('close', () => resolve())),
    drain() {
      for (let taken = 0; taken < PIPE_BYTES_MAX && !socket.destroyed; ) {
        const bytes = readNow(fd, buffer)
        if (bytes === 0) return
        taken += bytes
        tap.onChunk?.(Buffer.from(buffer.subarray(0, bytes)))
      }
    },
    close: () => socket.destroy(),
  }
  socket.on('data', chunk => tap.onChunk?.(chunk))
  socket.on('error', () => {})
  return tap
}

interface Orders {
  write(bytes: Buffer): void
  close(): void
}

/** Writes at once what the pipe takes, which is nearly always everything, and the rest as there is room. */
function makeOrders(path: string): Orders {
  // Read and write, for the open would otherwise wait for a reader, who in turn waits for a writer.
  const fd = openSync(path, constants.O_RDWR | constants.O_NONBLOCK)
  let socket: Socket | null = null
  let closed = false
  return {
    write(bytes) {
      if (closed) return
      const written = socket ? 0 : writeNow(fd, bytes)
      if (written === bytes.length) return
      socket ??= new Socket({ fd, readable: false, writable: true }).on('error', () => {})
      socket.write(bytes.subarray(written))
    },
    close() {
      if (closed) return
      closed = true
      if (socket) socket.destroy()
      else closeSync(fd)
    },
  }
}

function openToRead(path: string): number {
  return openSync(path, constants.O_RDONLY | constants.O_NONBLOCK)
}

function openInit(pid: number): { pid: number; stat: number } | null {
  try {
    return { pid, stat: openSync(`/proc/${pid}/stat`, 'r') }
  } catch {
    return null
  }
}

function stillThere(stat: number): boolean {
  try {
    return readSync(stat, Buffer.alloc(1), 0, 1, 0) === 1
  } catch {
    return false
  }
}

function killQuietly(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It died first.
  }
}

function readNow(fd: number, buffer: Buffer): number {
  try {
    return readSync(fd, buffer)
  } catch {
    return 0
  }
}

function writeNow(fd: number, bytes: Buffer): number {
  try {
    return writeSync(fd, bytes)
  } catch {
    return 0
  }
}

function parseStatus(line: string): { 'child-pid'?: number; 'exit-code'?: number } {
  try {
    return JSON.parse(line)
  } catch {
    return {}
  }
}

function timesToMs([, userMinutes, userSeconds, systemMinutes, systemSeconds]: RegExpExecArray): number {
  const minutes = Number(userMinutes) + Number(systemMinutes)
  return minutes * 60_000 + (Number(userSeconds) + Number(systemSeconds)) * 1000
}
