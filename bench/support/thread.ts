/** Who sends the load: a thread of the benchmark's process, so that it takes no turns from what it measures. */
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'

export interface LoadThread<Load, Result> {
  send(load: Load): Promise<Result>
  close(): Promise<number>
}

/**
 * Makes the file the thread's, too: there it does `run` for each load it is sent.
 * @param url of the file that calls this
 */
export function makeLoadThread<Load, Result>(url: string, run: (load: Load) => Promise<Result>) {
  if (!isMainThread && workerData?.loadsOf === url) {
    parentPort!.on('message', async (load: Load) => parentPort!.postMessage(await run(load)))
  }
  return (): LoadThread<Load, Result> => {
    const worker = new Worker(new URL(url), { workerData: { loadsOf: url } })
    return {
      send(load) {
        return new Promise((resolve, reject) => {
          worker.once('error', reject)
          worker.once('message', (result: Result) => {
            worker.off('error', reject)
            resolve(result)
          })
          worker.postMessage(load)
        })
      },
      close: () => worker.terminate(),
    }
  }
}
