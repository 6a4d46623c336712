#![no_main]

#[global_allocator]
static ALLOCATOR: flotilla_fuzzing::allocations::Counting = flotilla_fuzzing::allocations::Counting;

libfuzzer_sys::fuzz_target!(|input: &[u8]| flotilla_fuzzing::run("batch", input));
