/** A Kafka for tests, one node, where `test/services/kafka.sh` has installed it. */
import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { Admin } from '@platformatic/kafka'
import { atEnd } from './at-end.ts'
import { freePort, installedFolder, makeServer, type TestServer, whyMissing } from './servers.ts'

/** Why tests that need one are skipped; false where there is one. */
export const kafkaIsMissing: string | false = whyMissing('kafka')

export interface TestKafka extends TestServer {
  /** What KAFKA_BROKERS takes. */
  brokers: string
}

const askTimeoutMs = 2000

/**
 * Empty and answering; gone at the end of the file's tests. It makes no topic by itself. What it acknowledged survives
 * SIGKILL, as the system's page cache does; it does not wait for the disk.
 */
export async function makeTestKafka(): Promise<TestKafka> {
  const home = installedFolder('kafka')
  const folder = await mkdtemp(path.join(tmpdir(), 'capstan-kafka-'))
  const [port, controllerPort] = await Promise.all([freePort(), freePort()])
  const brokers = `127.0.0.1:${port}`
  await cp(path.join(home, 'formatted'), path.join(folder, 'data'), { recursive: true })
  const config = path.join(folder, 'server.properties')
  await writeFile(config, renderProperties(settingsOf({ port, controllerPort, folder })))
  const server = makeServer({
    name: 'Kafka',
    command: 'java',
    args: [`@${home}/java.args`, 'kafka.Kafka', config],
    isReady: () => isReady(brokers),
  })
  atEnd(async () => {
    await server.kill()
    await rm(folder, { recursive: true, force: true })
  })
  await server.start()
  return { brokers, ...server }
}

function settingsOf({ port, controllerPort, folder }: { port: number; controllerPort: number; folder: string }) {
  return {
    'process.roles': 'broker,controller',
    'node.id': '1',
    'controller.quorum.voters': `1@127.0.0.1:${controllerPort}`,
    'controller.listener.names': 'CONTROLLER',
    listeners: `PLAINTEXT://127.0.0.1:${port},CONTROLLER://127.0.0.1:${controllerPort}`,
    'advertised.listeners': `PLAINTEXT://127.0.0.1:${port}`,
    'log.dirs': path.join(folder, 'data'),
    'auto.create.topics.enable': 'false',
    'offsets.topic.num.partitions': '1',
    'offsets.topic.replication.factor': '1',
    'transaction.state.log.num.partitions': '1',
    'transaction.state.log.replication.factor': '1',
    'transaction.state.log.min.isr': '1',
    'num.network.threads': '2',
    'num.io.threads': '2',
    // Half of the heap otherwise.
    'log.cleaner.dedupe.buffer.size': '2097152',
    // After SIGKILL the broker may come back only when its former self is given up, after 9 s by default.
    'broker.session.timeout.ms': '2000',
    'broker.heartbeat.interval.ms': '250',
    'controller.quorum.election.timeout.ms': '300',
    'controller.quorum.election.backoff.max.ms': '100',
    // A killed consumer's partitions are another's soon, and at once when nobody else is there.
    'group.initial.rebalance.delay.ms': '0',
    'group.min.session.timeout.ms': '500',
    'group.consumer.min.session.timeout.ms': '500',
    'group.consumer.session.timeout.ms': '6000',
    'group.consumer.min.heartbeat.interval.ms': '100',
    'group.consumer.heartbeat.interval.ms': '500',
  }
}

function renderProperties(settings: Record<string, string>): string {
  return Object.entries(settings)
    .map(([key, value]) => `${key}=${value}\n`)
    .join('')
}

/** A broker is named in its own metadata once it may lead partitions. */
async function isReady(brokers: string): Promise<boolean> {
  const admin = new Admin({
    clientId: 'capstan-test',
    bootstrapBrokers: [brokers],
    retries: 0,
    connectTimeout: askTimeoutMs,
    requestTimeout: askTimeoutMs,
    timeout: askTimeoutMs,
  })
  try {
    const metadata = await admin.metadata({ topics: [] })
    return metadata.brokers.size > 0
  } finally {
    await admin.close()
  }
}
