/** The stream of the old course pipeline, which is there from the start. */
import { makeRandom } from '#platform/random.ts'
import type { Declaration } from './types.ts'

export const coursesName = 'courses'

export const coursesDeclaration: Declaration = {
  schema: {
    type: 'object',
    required: ['curso', 'facultad', 'carrera', 'region'],
    properties: {
      curso: { type: 'string' },
      facultad: { type: 'string' },
      carrera: { type: 'string' },
      region: { type: 'string' },
    },
  },
  dimensions: ['region', 'facultad', 'carrera', 'curso'],
  weights: { a: 50, b: 50 },
  stickyBy: null,
  retentionDays: 30,
  writers: 'users',
  readers: 'users',
}

export interface CourseRecord {
  curso: string
  facultad: string
  carrera: string
  region: string
}

const regions = [
  'METROPOLITANA',
  'NORTE',
  'NORORIENTAL',
  'SURORIENTAL',
  'CENTRAL',
  'SUROCCIDENTAL',
  'NOROCCIDENTAL',
  'PETEN',
] as const

const faculties = [
  {
    facultad: 'Ingenieria',
    carreras: ['Sistemas', 'Industrial', 'Quimica', 'Civil'],
    cursos: ['SO1', 'IA', 'LAB', 'SA', 'OLC2'],
  },
  { facultad: 'Medicina', carreras: ['General', 'Pediatria', 'Cirugia', 'Oftalmologia'], cursos: ['MD1', 'MG'] },
] as const

/** As many records as asked for, the same ones for the same seed. */
export function* generateCourses(given: { count: number; seed: number }): Generator<CourseRecord> {
  const random = makeRandom(given.seed)
  const pick = <T>(items: readonly T[]): T => items[Math.floor(random() * items.length)]!
  for (let index = 0; index < given.count; index++) {
    const { facultad, carreras, cursos } = pick(faculties)
    yield { curso: pick<string>(cursos), facultad, carrera: pick<string>(carreras), region: pick(regions) }
  }
}
