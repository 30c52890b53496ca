/**
 * Who is present in which topic, and what of it changed since it was last told. Somebody may be there by way of
 * several processes; this counts them.
 */
export interface Rooms {
  /** One more process knows somebody to be there. */
  enter(topic: string, who: string): void
  /** One process less does. */
  exit(topic: string, who: string): void
  /** Sorted. */
  present(topic: string): string[]
  /** What is to be told now. Comings and goings of a while are told together. */
  takeDue(now: number): { topic: string; change: PresenceChange }[]
}

export interface PresenceChange {
  /** How many are there now. */
  count: number
  /** Who, unless they are too many to name. */
  joined?: string[]
  left?: string[]
}

interface Room {
  /** By how many processes each is known to be there. */
  people: Map<string, number>
  joined: Set<string>
  left: Set<string>
  changedAt: number | undefined
}

/** In a room with more than these, only their number is told, and more rarely. */
const namesMax = 200
const crowdedFactor = 10

export function makeRooms(options: { now: () => number; windowMs: number }): Rooms {
  const rooms = new Map<string, Room>()
  const changed = new Set<string>()

  function roomOf(topic: string): Room {
    const known = rooms.get(topic)
    if (known) return known
    const room: Room = { people: new Map(), joined: new Set(), left: new Set(), changedAt: undefined }
    rooms.set(topic, room)
    return room
  }

  /** Who came and went before anybody was told did neither. */
  function note(topic: string, room: Room, who: string, [into, outOf]: [Set<string>, Set<string>]) {
    if (!outOf.delete(who)) into.add(who)
    room.changedAt ??= options.now()
    changed.add(topic)
  }

  function takeChange(topic: string, room: Room): PresenceChange | undefined {
    const [joined, left, count] = [[...room.joined], [...room.left], room.people.size]
    room.joined.clear()
    room.left.clear()
    room.changedAt = undefined
    changed.delete(topic)
    if (count === 0) rooms.delete(topic)
    if (joined.length + left.length === 0) return undefined
    return Math.max(count, joined.length + left.length) > namesMax ? { count } : { count, joined, left }
  }

  return {
    enter(topic, who) {
      const room = roomOf(topic)
      const count = room.people.get(who) ?? 0
      room.people.set(who, count + 1)
      if (count === 0) note(topic, room, who, [room.joined, room.left])
    },
    exit(topic, who) {
      const room = rooms.get(topic)
      const count = room?.people.get(who)
      if (!room || count === undefined) return
      if (count > 1) {
        room.people.set(who, count - 1)
      } else {
        room.people.delete(who)
        note(topic, room, who, [room.left, room.joined])
      }
    },
    present: topic => [...(rooms.get(topic)?.people.keys() ?? [])].sort(),
    takeDue(now) {
      const due: { topic: string; change: PresenceChange }[] = []
      for (const topic of changed) {
        const room = rooms.get(topic)!
        const windowMs = room.people.size > namesMax ? options.windowMs * crowdedFactor : options.windowMs
        if (now - room.changedAt! < windowMs) continue
        const change = takeChange(topic, room)
        if (change) due.push({ topic, change })
      }
      return due
    },
  }
}
