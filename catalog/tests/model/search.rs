//! The search: visits every state that a model can reach, breadth first, so that a counterexample is a shortest one.
//!
//! Each state is kept once, whole; equal states are compared, not only their hashes. So "holds" is exact for the model.
//! What may happen at any moment in the real world is a step here that is possible in any state: nothing is drawn at
//! random, and no time passes.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};

/// What is searched: states, the steps between them, and what must hold.
pub(crate) trait Model {
    /// Everything that the actors know and the store holds.
    type State: Clone + Eq + Hash;

    /// Where each run begins.
    fn initial(&self) -> Self::State;

    /// All single steps from `state`, of each actor and of the world around them.
    fn steps(&self, state: &Self::State, steps: &mut Steps<Self::State>);

    /// The state that stands for all that differ only in the names of equal actors.
    fn canonical(&self, state: Self::State) -> Self::State {
        state
    }

    /// The promise that this state breaks.
    fn broken(&self, state: &Self::State) -> Option<String>;

    /// Whether nothing is left that nobody needs.
    fn at_rest(&self, state: &Self::State) -> bool;
}

/// A step: where it leads, and whether actors that go on take it. Crashes, and what people decide, are not needed for
/// garbage to go away, so they do not count there.
struct Step<S> {
    to: S,
    fair: bool,
}

/// Collects the steps from a state. Texts are made for counterexamples only.
pub(crate) struct Steps<S> {
    steps: Vec<Step<S>>,
    texts: Option<Vec<String>>,
}

impl<S> Steps<S> {
    fn new(with_texts: bool) -> Self {
        Steps {
            steps: Vec::new(),
            texts: with_texts.then(Vec::new),
        }
    }

    /// An actor does something.
    pub(crate) fn act(&mut self, to: S, text: impl FnOnce() -> String) {
        self.add(to, true, text);
    }

    /// The world does something: a crash, a late request, a decision of a person.
    pub(crate) fn befall(&mut self, to: S, text: impl FnOnce() -> String) {
        self.add(to, false, text);
    }

    fn add(&mut self, to: S, fair: bool, text: impl FnOnce() -> String) {
        self.steps.push(Step { to, fair });
        if let Some(texts) = &mut self.texts {
            texts.push(text());
        }
    }
}

/// What a search found.
pub(crate) enum Outcome {
    /// All reachable states keep the promises, and garbage can go away from each of them.
    Holds(Size),
    /// A shortest run that breaks a promise.
    Broken {
        promise: String,
        trace: String,
        size: Size,
    },
    /// A shortest run after which garbage stays, whatever the actors do.
    Stuck { trace: String, size: Size },
    /// More states than the bound.
    TooLarge(Size),
}

/// How far a search went.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Size {
    pub(crate) states: usize,
    pub(crate) steps: usize,
    /// Steps from the beginning to the states that are farthest away.
    pub(crate) depth: usize,
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} states, {} steps between them, {} deep",
            self.states, self.steps, self.depth
        )
    }
}

/// Searches all states of `model`, at most `max_states`, which bounds the memory.
pub(crate) fn search<M: Model>(model: &M, max_states: usize) -> Outcome {
    let mut seen = Seen::new();
    let mut fair = Vec::new();
    let mut size = Size::default();
    let mut level_ends = 1;
    seen.insert(model.initial(), 0);
    if let Some(promise) = model.broken(&seen.states[0]) {
        return Outcome::Broken {
            promise,
            trace: String::new(),
            size,
        };
    }
    let mut from = 0;
    let mut steps = Steps::new(false);
    while from < seen.states.len() {
        if from == level_ends {
            size.depth += 1;
            level_ends = seen.states.len();
        }
        model.steps(&seen.states[from], &mut steps);
        for step in steps.steps.drain(..) {
            size.steps += 1;
            let known = seen.states.len();
            let to = seen.insert(model.canonical(step.to), from);
            if step.fair {
                fair.push([index(from), index(to)]);
            }
            if to < known {
                continue;
            }
            size.states = known + 1;
            if let Some(promise) = model.broken(&seen.states[to]) {
                return Outcome::Broken {
                    promise,
                    trace: trace(model, &seen, to),
                    size,
                };
            }
        }
        if seen.states.len() > max_states {
            return Outcome::TooLarge(size);
        }
        from += 1;
    }
    match first_stuck(model, &seen, &fair) {
        Some(stuck) => Outcome::Stuck {
            trace: trace(model, &seen, stuck),
            size,
        },
        None => Outcome::Holds(size),
    }
}

fn index(state: usize) -> u32 {
    u32::try_from(state).expect("the bound of states fits")
}

/// The first state from which no fair steps lead to rest: searched backwards from all states at rest.
fn first_stuck<M: Model>(model: &M, seen: &Seen<M::State>, fair: &[[u32; 2]]) -> Option<usize> {
    let count = seen.states.len();
    // The sources of the steps into state `i` are `sources[starts[i]..starts[i + 1]]`.
    let mut starts = vec![0_u32; count + 2];
    for [_, to] in fair {
        starts[*to as usize + 2] += 1;
    }
    for i in 2..starts.len() {
        starts[i] += starts[i - 1];
    }
    let mut sources = vec![0_u32; fair.len()];
    for [from, to] in fair {
        let place = &mut starts[*to as usize + 1];
        sources[*place as usize] = *from;
        *place += 1;
    }
    let mut reaches_rest: Vec<bool> = seen.states.iter().map(|state| model.at_rest(state)).collect();
    let mut queue: VecDeque<usize> = (0..count).filter(|state| reaches_rest[*state]).collect();
    while let Some(to) = queue.pop_front() {
        for from in &sources[starts[to] as usize..starts[to + 1] as usize] {
            let from = *from as usize;
            if !reaches_rest[from] {
                reaches_rest[from] = true;
                queue.push_back(from);
            }
        }
    }
    reaches_rest.iter().position(|reaches| !reaches)
}

/// The steps that lead to state `last`, a line for each.
fn trace<M: Model>(model: &M, seen: &Seen<M::State>, last: usize) -> String {
    let mut path = vec![last];
    while let Some(at) = path.last().copied().filter(|at| *at != 0) {
        path.push(seen.found_from[at] as usize);
    }
    path.reverse();
    // The states on the way are canonical: the actors get the names back that they have had from the beginning.
    let mut state = model.initial();
    let mut text = String::new();
    for (number, at) in path.iter().enumerate().skip(1) {
        let mut steps = Steps::new(true);
        model.steps(&state, &mut steps);
        let texts = steps.texts.unwrap_or_default();
        let mut found = steps.steps.into_iter().map(|step| step.to).zip(texts);
        let taken = found.find(|(to, _)| model.canonical(to.clone()) == seen.states[*at]);
        let (to, step) = taken.expect("equal actors take equal steps");
        writeln!(text, "{number:>4}. {step}").expect("a string grows");
        state = to;
    }
    text
}

/// All states found so far in the order in which they were found, and a hash table of their places.
struct Seen<S> {
    states: Vec<S>,
    found_from: Vec<u32>,
    /// Open addressing; a place is the number of a state plus one, 0 is free.
    table: Vec<u32>,
}

impl<S: Eq + Hash> Seen<S> {
    fn new() -> Self {
        Seen {
            states: Vec::new(),
            found_from: Vec::new(),
            table: vec![0; 1 << 12],
        }
    }

    /// The number of `state`, which is new if it is the highest.
    fn insert(&mut self, state: S, from: usize) -> usize {
        if self.states.len() * 2 >= self.table.len() {
            self.grow();
        }
        let place = self.place(&state);
        match self.table[place] {
            0 => {
                self.states.push(state);
                self.found_from.push(index(from));
                self.table[place] = index(self.states.len());
                self.states.len() - 1
            }
            taken => taken as usize - 1,
        }
    }

    /// Where `state` is in the table, or the free place where it belongs.
    fn place(&self, state: &S) -> usize {
        let mask = self.table.len() - 1;
        let mut place = hash(state) & mask;
        while self.table[place] != 0 && self.states[self.table[place] as usize - 1] != *state {
            place = (place + 1) & mask;
        }
        place
    }

    fn grow(&mut self) {
        self.table = vec![0; self.table.len() * 2];
        let mask = self.table.len() - 1;
        for (number, state) in self.states.iter().enumerate() {
            let mut place = hash(state) & mask;
            while self.table[place] != 0 {
                place = (place + 1) & mask;
            }
            self.table[place] = index(number + 1);
        }
    }
}

fn hash(state: &impl Hash) -> usize {
    let mut hasher = Multiply(0);
    state.hash(&mut hasher);
    let mixed = hasher.0 ^ (hasher.0 >> 32);
    usize::try_from(mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20).unwrap_or(0)
}

/// Quick without optimization, and good enough for states of small numbers.
struct Multiply(u64);

impl Hasher for Multiply {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(value.into());
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0xF135_7AEA_2E62_A9C5);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
