/** What is made of a file when it comes, and what that takes. */
import { SettingsError } from '#platform/config.ts'
import { chooseFormat, parsePresets } from './processing/transform.ts'
import type { FixedTransform, Transform } from './processing/types.ts'
import { decodeBytesOf, workBytesOf } from './processing/weigh.ts'
import type { Publisher } from './publishing.ts'
import type { ImagesSettings } from './settings.ts'
import type { BegunRow } from './store.ts'
import type { ImageFacts } from './types.ts'

interface PlannedOutput {
  name: string
  transform: FixedTransform
}

type PlannedFile = Pick<BegunRow, 'profile' | 'facts'>

export interface Plan {
  outputs: PlannedOutput[]
  /** Called with the first output, or the original where there is none, before the file is ready. */
  publish?: (path: string) => Promise<void>
}

export type Planner = (file: PlannedFile, imageId: string) => Plan

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

/** The lightest there is. */
const smallestFacts: ImageFacts = {
  format: 'jpeg',
  width: 1,
  height: 1,
  orientation: 1,
  frames: 1,
  progressive: false,
  bitsPerSample: 8,
  channels: 3,
}

export function makePlanner(settings: Pick<ImagesSettings, 'IMAGE_PRESETS'>, publisher: Publisher): Planner {
  const outputsOf = makeOutputs(settings)
  return (file, imageId) => ({
    outputs: outputsOf(file),
    ...(file.profile === 'upload' && { publish: path => publisher.publish(imageId, path) }),
  })
}

/**
 * Answers most memory that working on a file takes, in bytes: what is made of it when it comes, and decoding it for what
 * is usually asked for later.
 */
export function makeWeigher(settings: Pick<ImagesSettings, 'IMAGE_PRESETS'>): (file: PlannedFile) => number {
  const outputsOf = makeOutputs(settings)
  return file => Math.max(decodeBytesOf(file.facts), weigh(file.facts, outputsOf(file)))
}

/** @throws SettingsError for a preset that would have even the smallest image fail */
export function assertPresetsFit(settings: Pick<ImagesSettings, 'IMAGE_PRESETS' | 'IMAGE_MEMORY_BYTES'>) {
  const limit = settings.IMAGE_MEMORY_BYTES
  const problems: string[] = []
  for (const output of makeOutputs(settings)({ profile: 'presets', facts: smallestFacts })) {
    const needed = weigh(smallestFacts, [output])
    if (needed <= limit) continue
    problems.push(
      `IMAGE_PRESETS has the preset \`${output.name}\`, but making it takes ${needed} bytes of memory of any image, and ` +
        `IMAGE_MEMORY_BYTES gives ${limit}. Make the preset smaller, or set IMAGE_MEMORY_BYTES to ${needed} or more.`,
    )
  }
  if (problems.length > 0) throw new SettingsError(problems)
}

function makeOutputs({ IMAGE_PRESETS }: Pick<ImagesSettings, 'IMAGE_PRESETS'>): (file: PlannedFile) => PlannedOutput[] {
  const presets = [...parsePresets(IMAGE_PRESETS)]
  return ({ profile, facts }) => {
    if (profile === 'presets') return presets.map(([name, transform]) => ({ name, transform: fix(transform, facts) }))
    const isSmall = facts.width <= uploadSideMax && facts.height <= uploadSideMax
    return isSmall ? [] : [{ name: uploadVariant, transform: uploadTransform }]
  }
}

/** As the worker asks for it; where outputs are written does not matter here. */
function weigh(facts: ImageFacts, outputs: PlannedOutput[]): number {
  return workBytesOf({ facts, outputs: outputs.map(({ transform }) => ({ transform, path: '' })), describe: true })
}

/** Nobody asks yet, so a preset whose format is `auto` is made in what everybody can show. */
function fix(transform: Transform, facts: BegunRow['facts']): FixedTransform {
  return { ...transform, format: chooseFormat(transform, undefined, facts) }
}
