/** What an Accept header says of images. */
export interface Likes {
  /** 0 to 1, the most exact range counting; 0 for what it leaves out. */
  quality(format: string): number
  /** Whether it says the type itself, not only a wildcard. */
  names(format: string): boolean
}

/** More ranges than that are not read. */
const rangesMax = 64

/** @param header as in `image/avif;q=0.8, image/*;q=0.5` */
export function readAccept(header: string): Likes {
  const ranges = new Map<string, number>()
  for (const part of header.split(',', rangesMax)) {
    const [type = '', ...parameters] = part.split(';').map(text => text.trim().toLowerCase())
    ranges.set(type, qualityOf(parameters))
  }
  return {
    quality: format => ranges.get(`image/${format}`) ?? ranges.get('image/*') ?? ranges.get('*/*') ?? 0,
    names: format => ranges.has(`image/${format}`),
  }
}

function qualityOf(parameters: string[]): number {
  const text = parameters.find(parameter => parameter.startsWith('q='))?.slice(2)
  if (text === undefined) return 1
  const value = Number(text)
  return text !== '' && value >= 0 && value <= 1 ? value : 0
}
