/** What is made of each picture: the field's usual figure. */
export interface Fit {
  width: number
  height: number
  quality: number
}

export const fitOf = (quality: number): Fit => ({ width: 512, height: 512, quality })
