/** What is made of a file when it comes. */
import { chooseFormat, parsePresets } from './processing/transform.ts'
import type { FixedTransform, Transform } from './processing/types.ts'
import type { Publisher } from './publishing.ts'
import type { ImagesSettings } from './settings.ts'
import type { BegunRow } from './store.ts'

export interface Plan {
  outputs: { name: string; transform: FixedTransform }[]
  /** Called with the first output, or the original where there is none, before the file is ready. */
  publish?: (path: string) => Promise<void>
}

export type Planner = (file: Pick<BegunRow, 'profile' | 'facts'>, imageId: string) => Plan

/** The old server's bound: a 3:2 original larger than that became 1920×1280. */
const uploadSideMax = 1920
const uploadTransform: FixedTransform = {
  width: uploadSideMax,
  height: uploadSideMax,
  fit: 'inside',
  position: 'centre',
  format: 'jpeg',
}
/** The name of the old contract's variant. An image that is small enough is its own. */
const uploadVariant = 'upload'

export function makePlanner(settings: ImagesSettings, publisher: Publisher): Planner {
  const presets = [...parsePresets(settings.IMAGE_PRESETS)]
  return ({ profile, facts }, imageId) => {
    if (profile === 'presets') {
      return { outputs: presets.map(([name, transform]) => ({ name, transform: fix(transform, facts) })) }
    }
    const isSmall = facts.width <= uploadSideMax && facts.height <= uploadSideMax
    return {
      outputs: isSmall ? [] : [{ name: uploadVariant, transform: uploadTransform }],
      publish: path => publisher.publish(imageId, path),
    }
  }
}

/** Nobody asks yet, so a preset whose format is `auto` is made in what everybody can show. */
function fix(transform: Transform, facts: BegunRow['facts']): FixedTransform {
  return { ...transform, format: chooseFormat(transform, undefined, facts) }
}
