/** What money is here: whole minor units of a currency, as bigints, never floats. */
import { errors } from './errors.ts'

/** ISO 4217, by the number of digits after the point. */
const iso: Record<number, string> = {
  0: 'BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF',
  2:
    'AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF ' +
    'CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF ' +
    'IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN ' +
    'MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS ' +
    'SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG',
  3: 'BHD IQD JOD KWD LYD OMR TND',
  4: 'CLF UYW',
}

const isoExponents = Object.entries(iso).flatMap(([exponent, codes]) =>
  codes.split(' ').map(code => [code, Number(exponent)] as const),
)

/** By code, the number of digits after the point. */
export type Currencies = ReadonlyMap<string, number>

/** @param units as LEDGER_UNITS has them */
export function makeCurrencies(units: string): Currencies {
  return new Map([...isoExponents, ...parseUnits(units)])
}

/** @throws an Error with a sentence for whoever set it */
export function parseUnits(units: string): [string, number][] {
  const known = new Set(isoExponents.map(([code]) => code))
  return units
    .split(',')
    .map(unit => unit.trim())
    .filter(Boolean)
    .map(unit => {
      const match = /^([A-Z][A-Z0-9_]{2,11}):(\d|1[0-8])$/.exec(unit)
      if (!match) throw new Error(`\`${unit}\` is not a unit such as CREDIT:0, with an exponent from 0 to 18.`)
      if (known.has(match[1]!)) throw new Error(`${match[1]} is a currency of ISO 4217 already.`)
      return [match[1]!, Number(match[2])]
    })
}

/** What a bigint column holds. */
export const amountMax = 2n ** 63n - 1n
export const balanceMin = -(2n ** 63n)

/**
 * An amount as the native API takes it: a text of digits, as JSON numbers are not exact beyond 2^53.
 * @throws amount_not_text, amount_malformed, amount_fractional, amount_negative, amount_zero, amount_too_large
 */
export function parseAmount(value: unknown): bigint {
  if (typeof value !== 'string') throw errors.amountNotText()
  if (/^-\d+(\.\d+)?$/.test(value)) throw errors.amountNegative()
  if (/^\d+\.\d+$/.test(value)) throw errors.amountFractional()
  if (!/^\d+$/.test(value) || value.length > 400) throw errors.amountMalformed()
  return checkSize(BigInt(value))
}

/**
 * An amount as the old contract takes it: a JSON number.
 * @throws amount_not_number, amount_fractional, amount_negative, amount_zero, amount_too_large
 */
export function parseNumericAmount(value: unknown): bigint {
  if (typeof value !== 'number') throw errors.amountNotNumber()
  if (value < 0) throw errors.amountNegative()
  // Past 2^53 the number that arrived need not be the one that was sent; every such number is whole.
  if (value > Number.MAX_SAFE_INTEGER) throw errors.amountTooLarge()
  if (!Number.isInteger(value)) throw errors.amountFractional()
  return checkSize(BigInt(value))
}

function checkSize(amount: bigint): bigint {
  if (amount === 0n) throw errors.amountZero()
  if (amount > amountMax) throw errors.amountTooLarge()
  return amount
}

/** A floor, which may be negative. @throws bad_floor */
export function parseFloor(value: unknown): bigint {
  if (typeof value !== 'string' || !/^-?\d{1,19}$/.test(value)) throw errors.badFloor()
  const floor = BigInt(value)
  if (floor > 0n || floor < balanceMin) throw errors.badFloor()
  return floor
}

/** The ids of accounts and transfers as the native API takes them: texts of digits. @throws bad_id */
export function parseId(value: unknown, field: string): number {
  if (typeof value !== 'string' || !/^\d{1,16}$/.test(value)) throw errors.badId(field)
  const id = Number(value)
  if (!Number.isSafeInteger(id) || id === 0) throw errors.badId(field)
  return id
}
