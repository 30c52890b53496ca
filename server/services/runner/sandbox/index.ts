export { InvalidExecution, SandboxError } from './errors.ts'
export { detectLanguages, LANGUAGES, type Language, type LanguageSpec } from './languages.ts'
export { DEFAULT_LIMITS, makeSandbox } from './sandbox.ts'
export type {
  Bind,
  Execution,
  ExecutionResult,
  LimitedBy,
  Limits,
  Runtime,
  Sandbox,
  SandboxFacts,
  SandboxOptions,
  SourceFile,
  Step,
  StepResult,
  StepStatus,
  Stream,
} from './types.ts'
