/** What a `meta` box says (ISO/IEC 23008-12): items, what each is like, what is made of what, and where their bytes lie. */

import { type Box, boxesIn, type Fields, fieldsOf } from './boxes.ts'
import { errors } from './errors.ts'

export interface Item {
  /** Such as `av01`, `hvc1`, `grid`, `Exif`. */
  type: string
  /** In the order in which they apply. */
  properties: Box[]
  /** First byte and the one after the last, in the file. */
  extents: { start: number; end: number }[]
  /** Bytes of it that lie in the `meta` box itself. */
  inner: Buffer | undefined
}

export interface Items {
  primary: Item
  byId: ReadonlyMap<number, Item>
  /** Of a kind such as `dimg`, in order. */
  references: { kind: string; from: Item; to: number[] }[]
}

/** Nothing that a camera writes comes near. */
const itemsMax = 4096
const referencesMax = 65_536
const propertiesMax = 64
/** Pieces that all items together lie in. They can be told in no bytes at all. */
const extentsMax = 16_384
const versionBytes = 1
const flagBytes = 3

/** @param body of the `meta` box */
export function readItems(body: Buffer): Items {
  const boxes = boxesIn(body.subarray(versionBytes + flagBytes))
  const items = readInfos(bodyOf(boxes, 'iinf'))
  readProperties(boxesIn(bodyOf(boxes, 'iprp')), items)
  readPlaces(bodyOf(boxes, 'iloc'), items, boxes.find(box => box.type === 'idat')?.body ?? Buffer.alloc(0))
  const pitm = full(bodyOf(boxes, 'pitm'))
  const primary = items.get(pitm.fields.number(pitm.version === 0 ? 2 : 4))
  if (!primary) throw errors.malformed('its main picture is missing')
  const iref = boxes.find(box => box.type === 'iref')
  return { primary, byId: items, references: iref ? readReferences(iref.body, items) : [] }
}

function bodyOf(boxes: Box[], type: string): Buffer {
  const box = boxes.find(each => each.type === type)
  if (!box) throw errors.malformed(`a box is missing (${type})`)
  return box.body
}

/** Of a box that begins with a version and flags. */
export function full(body: Buffer): { version: number; flags: number; fields: Fields } {
  const fields = fieldsOf(body)
  return { version: fields.number(versionBytes), flags: fields.number(flagBytes), fields }
}

function readInfos(body: Buffer): Map<number, Item> {
  const { version, fields } = full(body)
  const countBytes = version === 0 ? 2 : 4
  if (fields.number(countBytes) > itemsMax) throw errors.malformed('it has too many parts')
  const items = new Map<number, Item>()
  for (const box of boxesIn(body.subarray(versionBytes + flagBytes + countBytes))) {
    const info = full(box.body)
    // Older versions have no types: they are no pictures.
    if (box.type !== 'infe' || info.version < 2) continue
    const id = info.fields.number(info.version === 2 ? 2 : 4)
    const protection = info.fields.number(2)
    if (protection !== 0) throw errors.variantUnsupported('a protected image')
    items.set(id, { type: info.fields.text(4), properties: [], extents: [], inner: undefined })
    if (items.size > itemsMax) throw errors.malformed('it has too many parts')
  }
  return items
}

const essentialBits = { short: 7, long: 15 } as const

function readProperties(boxes: Box[], items: Map<number, Item>) {
  const all = boxesIn(bodyOf(boxes, 'ipco'))
  for (const { type, body } of boxes) {
    if (type !== 'ipma') continue
    const { version, flags, fields } = full(body)
    const isLong = (flags & 1) === 1
    for (let left = fields.number(4); left > 0; left--) {
      const item = items.get(fields.number(version === 0 ? 2 : 4))
      for (let associations = fields.number(1); associations > 0; associations--) {
        const index = fields.number(isLong ? 2 : 1) & (2 ** (isLong ? essentialBits.long : essentialBits.short) - 1)
        const property = all[index - 1]
        if (!property || !item) continue
        if (item.properties.push(property) > propertiesMax) throw errors.malformed('it has too many parts')
      }
    }
  }
}

function readPlaces(body: Buffer, items: Map<number, Item>, inner: Buffer) {
  const { version, fields } = full(body)
  const sizes = fields.number(2)
  const [offsetBytes, lengthBytes, baseBytes] = [(sizes >> 12) & 15, (sizes >> 8) & 15, (sizes >> 4) & 15].map(
    checkWidth,
  )
  const indexBytes = version === 0 ? 0 : checkWidth(sizes & 15)
  let total = 0
  for (let left = fields.number(version < 2 ? 2 : 4); left > 0; left--) {
    const item = items.get(fields.number(version < 2 ? 2 : 4))
    const method = version === 0 ? 0 : fields.number(2) & 15
    // Of the file the bytes lie in; 0 is this one.
    const file = fields.number(2)
    const base = fields.number(baseBytes!)
    for (let extents = fields.number(2); extents > 0; extents--) {
      if (++total > extentsMax) throw errors.malformed('it has too many parts')
      fields.number(indexBytes)
      const start = base + fields.number(offsetBytes!)
      const end = start + fields.number(lengthBytes!)
      if (!item) continue
      if (file !== 0 || method > 1) throw errors.variantUnsupported('an image whose parts lie elsewhere')
      if (method === 0) item.extents.push({ start, end })
      else item.inner ??= inner.subarray(start, end)
    }
  }
}

function checkWidth(bytes: number): number {
  if (bytes !== 0 && bytes !== 4 && bytes !== 8) throw errors.malformed('a box has numbers of an impossible length')
  return bytes
}

function readReferences(body: Buffer, items: Map<number, Item>): Items['references'] {
  const idBytes = body[0] === 0 ? 2 : 4
  const references: Items['references'] = []
  let total = 0
  for (const box of boxesIn(body.subarray(versionBytes + flagBytes))) {
    const fields = fieldsOf(box.body)
    const from = items.get(fields.number(idBytes))
    const count = fields.number(2)
    total += count
    if (total > referencesMax) throw errors.malformed('it has too many parts')
    const to = Array.from({ length: count }, () => fields.number(idBytes))
    if (from) references.push({ kind: box.type, from, to })
  }
  return references
}
