import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

setFlagsFromString('--expose-gc')

/** Collects all that nobody holds any more, so that what is left can be measured. V8 lends this to who asks by a flag. */
export const collectGarbage = runInNewContext('gc') as () => void
