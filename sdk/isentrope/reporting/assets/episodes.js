"use strict";
// The episode browser: a list of all episodes, and the tokens of the chosen ones. What episodes say
// goes into text nodes only. Needs preact, preactHooks and htm.
(() => {
  const { h, render } = preact;
  const { useEffect, useLayoutEffect, useMemo, useRef, useState } = preactHooks;
  const html = htm.bind(h);
  const place = document.getElementById("episodes");
  const live = place.dataset.live !== undefined;
  const ROW = 34; // pixels of a row of the list, as in the style sheet
  const UNSEEN = 255;

  // ------------------------------------------------------------------ data

  const visible = (text) =>
    String(text)
      .replace(/\r\n?/g, "\n")
      .replace(/[\ud800-\udfff]/gu, "\ufffd")
      .replace(
        /[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g,
        (c) => `\u27e8U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}\u27e9`,
      );

  async function inflated(bytes) {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  /** Return data that stands in the page, or that its server has; null where it is in neither. */
  async function read(name) {
    if (live) {
      const answer = await fetch(name);
      return answer.ok ? inflated(await answer.arrayBuffer()) : null;
    }
    const element = document.getElementById(name);
    if (!element) return null;
    const text = atob(element.textContent);
    return inflated(Uint8Array.from(text, (c) => c.charCodeAt(0)));
  }

  const asJson = (bytes) => JSON.parse(new TextDecoder().decode(bytes));

  /** Return every episode's facts, in the order in which they were written. */
  function episodesOf({ names, columns }) {
    const count = columns.iteration.length;
    const rows = new Array(count);
    let row = 0;
    for (let i = 0; i < count; i++) {
      row = i && columns.iteration[i] === columns.iteration[i - 1] ? row + 1 : 0;
      rows[i] = { at: i, row };
      for (const name in columns) {
        const value = columns[name][i];
        rows[i][name] = name in names ? names[name][value] : value;
      }
    }
    return rows;
  }

  const TYPES = { f4: Float32Array, i4: Int32Array, u1: Uint8Array };

  /** Return an iteration's texts and tokens. */
  function chunkOf(bytes) {
    const length = new DataView(bytes.buffer).getUint32(0, true);
    const head = asJson(bytes.subarray(4, 4 + length));
    const tokens = {};
    let offset = 4 + length;
    for (const [name, type, count] of head.columns) {
      tokens[name] = new TYPES[type](bytes.buffer, offset, count);
      offset += 4 * Math.ceil(tokens[name].byteLength / 4);
    }
    const found = new Map(); // row of an episode -> where its tokens are
    let first = 0, sampled = 0;
    for (let e = 0; e < (tokens.episode?.length ?? 0); e++) {
      const start = { first, sampled, last: first + tokens.length[e], step: tokens.step[e] };
      found.set(tokens.episode[e], start);
      for (; first < start.last; first++) sampled += tokens.sampled[first];
    }
    return { episodes: head.episodes, tokens, found, scales: new Map() };
  }

  const chunks = new Map(); // iteration -> promise; the last few
  function chunk(iteration) {
    let found = chunks.get(iteration);
    chunks.delete(iteration);
    found ??= read(`chunk-${iteration}`).then((bytes) => bytes && chunkOf(bytes));
    chunks.set(iteration, found);
    found.then((there) => { if (live && !there) chunks.delete(iteration); },
      () => chunks.delete(iteration)); // the next to ask reads again
    if (chunks.size > 8) chunks.delete(chunks.keys().next().value);
    return found;
  }

  /** Return runs of an episode's tokens: of one segment and turn, all sampled or none. A character
   * may take several tokens: it stands in the last of them, and the others are empty. */
  function runsOf(tokens, { first, last, sampled }) {
    const ends = tokens.piece_end, text = tokens.piece_text, runs = [];
    let decoder = null, run = null;
    const say = (bytes, more) => decoder.decode(bytes, { stream: more });
    for (let i = first, t = sampled; i < last; i++) {
      const of = tokens.sampled[i], p = tokens.piece[i];
      const next = i + 1 < last && tokens.segment[i + 1] === tokens.segment[i];
      const begins = !run || run.segment !== tokens.segment[i];
      if (begins) decoder = new TextDecoder("utf-8", { ignoreBOM: true });
      if (begins || run.turn !== tokens.turn[i] || !!run.sampled !== !!of) {
        run = { segment: tokens.segment[i], turn: tokens.turn[i], sampled: of, texts: [], at: t };
        runs.push(run);
      }
      let piece = say(text.subarray(p ? ends[p - 1] : 0, ends[p]), true);
      if (!next) piece += say(new Uint8Array(), false);
      run.texts.push(visible(piece));
      t += of;
    }
    return runs;
  }

  // ------------------------------------------------------------------ what tokens are coloured by

  const number = (x) =>
    x === null || x === undefined || Number.isNaN(x) ? "\u2013"
    : !Number.isFinite(x) ? String(x)
    : x < 0 ? `\u2212${number(-x)}`
    : Number.isInteger(x) ? x.toLocaleString("en")
    : x >= 1e-3 ? String(+x.toPrecision(3)) : x.toExponential(1);
  const probability = (p) => (p < 1 && p > 0.999 ? "p > 0.999" : `p ${number(p)}`);
  const counted = (x, noun) => `${number(x)} ${noun}${x === 1 ? "" : "s"}`;
  const weight = (t, i) => (t.advantage[i] === 0 ? NaN : t.transformed[i] / t.advantage[i]);
  const clipped = (t, i) => t.gradient[i] === 0 && t.transformed[i] !== 0;

  // of: what is shown; size: what the colour goes by, from 0; two-sided ones are signed.
  const COLOURS = {
    entropy: { name: "entropy", unit: "nats", of: (t, i) => t.entropy[i] },
    logp: { name: "log-prob", unit: "nats", of: (t, i) => t.logp[i], size: (x) => -x },
    ratio: {
      name: "ratio", unit: "", of: (t, i) => Math.exp(t.log_ratio[i]), size: Math.log,
      back: Math.exp, signed: true,
    },
    advantage: { name: "advantage", unit: "", of: (t, i) => t.advantage[i], signed: true },
    transformed: {
      name: "advantage, transformed", unit: "", of: (t, i) => t.transformed[i], signed: true,
    },
    weight: {
      name: "transform weight", unit: "\u00d7 the advantage", of: weight, size: (x) => x - 1,
      back: (x) => x + 1, signed: true,
    },
    clipped: { name: "clipped or not" },
    mismatch: {
      name: "engine less learner", unit: "nats", of: (t, i) => t.mismatch[i], signed: true,
    },
    version: { name: "policy version" },
  };

  /** Return the size that has the full colour: few of an iteration's tokens are beyond it. */
  function scaleOf(chunk, by) {
    if (chunk.scales.has(by)) return chunk.scales.get(by);
    const { of, size = (x) => x } = COLOURS[by];
    const count = chunk.tokens.logp.length, step = Math.max(1, Math.floor(count / 20000));
    const sizes = [];
    for (let i = 0; i < count; i += step) {
      const x = Math.abs(size(of(chunk.tokens, i)));
      if (Number.isFinite(x)) sizes.push(x);
    }
    sizes.sort((a, b) => a - b);
    const found = sizes[Math.floor(0.98 * (sizes.length - 1))] || sizes.at(-1) || 0;
    chunk.scales.set(by, found);
    return found;
  }

  const HUES = { more: "217, 95, 2", less: "31, 119, 200", clip: "150, 60, 190" };
  const shade = (hue, share) => `rgba(${HUES[hue]}, ${(0.75 * Math.min(1, share)).toFixed(3)})`;

  function colourOf(chunk, by, i) {
    const t = chunk.tokens;
    if (by === "clipped") return clipped(t, i) ? shade("clip", 1) : "";
    if (by === "version") {
      const newest = chunk.newest ??= t.version.reduce((a, b) => Math.max(a, b), -1);
      return t.version[i] < newest ? shade("more", 0.3 * (newest - t.version[i])) : "";
    }
    const { of, size = (x) => x, signed } = COLOURS[by];
    const x = size(of(t, i)), most = scaleOf(chunk, by);
    if (Number.isNaN(x) || !most) return "";
    return shade(signed && x < 0 ? "less" : "more", Math.abs(x) / most);
  }

  /** Say whether what tokens are coloured by is known of an episode. */
  function isKnown(chunk, by, episode) {
    const where = chunk.found.get(episode.row), { of } = COLOURS[by];
    if (!where || !of) return Boolean(where);
    for (let i = where.first, t = where.sampled; i < where.last; i++) {
      if (chunk.tokens.sampled[i] && !Number.isNaN(of(chunk.tokens, t++))) return true;
    }
    return false;
  }

  function Legend({ chunk, by, shown, members }) {
    const { unit, signed, back = (x) => x } = COLOURS[by];
    if (by === "clipped") {
      return html`<span class="faint"><i class="key-colour" style=${{ background: shade("clip", 1) }}
        /> no gradient though it had an advantage: the clip took it</span>`;
    }
    if (by === "version") return html`<span class="faint">the older the policy that sampled it, the
      stronger</span>`;
    if (!shown.some((e) => isKnown(chunk, by, e))) {
      const others = members.filter((e) => isKnown(chunk, by, e)).map((e) => e.rollout);
      return html`<span class="faint">not known here${others.length > 0
        && `, but of rollout ${others.join(", ")}`}${by === "entropy"
        && ": measured of the probe's episodes, or of all where the algorithm needs it"}</span>`;
    }
    const most = scaleOf(chunk, by);
    if (!most) return html`<span class="faint">nothing to tell apart</span>`;
    const low = signed ? back(-most) : 0, high = by === "logp" ? -most : back(most);
    const ends = signed ? [shade("less", 1), "transparent", shade("more", 1)]
      : ["transparent", shade("more", 1)];
    return html`<span class="faint legend">${number(low)}<i class="ramp"
      style=${{ background: `linear-gradient(to right, ${ends.join(", ")})` }} />${number(high)}
      ${" "}${unit}</span>`;
  }

  // ------------------------------------------------------------------ tokens

  const tip = document.createElement("div");
  tip.className = "tip card";
  tip.id = "token-values";
  tip.setAttribute("role", "status");
  tip.hidden = true;
  document.body.append(tip);

  function showTip(span, chunk) {
    const t = chunk.tokens, i = +span.dataset.i, p = +span.dataset.p;
    const ends = t.piece_end;
    const bytes = t.piece_text.subarray(p ? ends[p - 1] : 0, ends[p]);
    const text = visible(new TextDecoder().decode(bytes));
    const broken = text.includes("\ufffd");
    const hex = () => Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join(" ");
    const rows = [
      ["token", `${broken ? `bytes ${hex()}` : JSON.stringify(text)}, id ${t.piece_id[p]}`],
      ["entropy", number(t.entropy[i])],
      ["log-prob", `${number(t.logp[i])} (${probability(Math.exp(t.logp[i]))})`],
      ["advantage", number(t.advantage[i])],
      ["transformed", `${number(t.transformed[i])} (\u00d7 ${number(weight(t, i))})`],
      ["ratio", number(Math.exp(t.log_ratio[i]))],
      ["gradient",
        t.gradient[i] === UNSEEN ? "not learnt from"
        : t.gradient[i] ? "yes" : clipped(t, i) ? "none: clipped" : "none"],
      ["engine less learner", number(t.mismatch[i])],
      ["policy version", number(t.version[i])],
    ];
    tip.replaceChildren(...rows.flatMap(([name, value]) => {
      const key = document.createElement("span"), cell = document.createElement("b");
      key.textContent = name;
      cell.textContent = value;
      return [key, cell];
    }));
    tip.hidden = false;
    const box = span.getClientRects()[0] ?? span.getBoundingClientRect();
    const below = box.bottom + 6 + tip.offsetHeight < innerHeight;
    tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${below ? box.bottom + 6 : Math.max(4, box.top - tip.offsetHeight - 6)}px`;
  }

  const hideTip = () => { tip.hidden = true; };

  /** Show an episode's tokens, the sampled ones coloured. Drawn by hand: there may be thousands. */
  function Tokens({ chunk, where, by }) {
    const ref = useRef();
    useLayoutEffect(() => {
      const blocks = runsOf(chunk.tokens, where).map((run) => {
        const block = document.createElement("div"), text = document.createElement("div");
        const head = document.createElement("p");
        block.className = run.sampled ? "run sampled" : "run";
        head.className = "role";
        head.textContent = `turn ${run.turn + 1}: ${run.sampled
          ? `policy, ${counted(run.texts.length, "token")}`
          : run.turn ? "environment" : "prompt"}${run.segment ? `, segment ${run.segment + 1}` : ""}`;
        text.className = "stream";
        if (run.sampled) text.append(...run.texts.map((piece, k) => spanOf(piece, run.at + k)));
        else text.textContent = run.texts.join("");
        block.append(head, text);
        return block;
      });
      let t = where.first;
      const sampled = [];
      for (; t < where.last; t++) if (chunk.tokens.sampled[t]) sampled.push(chunk.tokens.piece[t]);
      ref.current.replaceChildren(...blocks);
      for (const span of ref.current.querySelectorAll(".t")) {
        span.dataset.p = sampled[+span.dataset.i - where.sampled];
      }
    }, [chunk, where]);
    useLayoutEffect(() => {
      for (const span of ref.current.querySelectorAll(".t")) {
        const i = +span.dataset.i;
        span.style.background = colourOf(chunk, by, i);
        span.classList.toggle("clipped", clipped(chunk.tokens, i));
      }
    }, [chunk, where, by]);
    const over = (event) => {
      const span = event.target.closest(".t");
      if (span) showTip(span, chunk);
      else hideTip();
    };
    const key = (event) => {
      const steps = { ArrowRight: 1, ArrowLeft: -1 };
      if (event.key === "Escape") return hideTip();
      if (!(event.key in steps)) return;
      const spans = [...ref.current.querySelectorAll(".t")];
      const from = spans.findIndex((span) => span.classList.contains("at"));
      const span = spans[Math.max(0, Math.min(spans.length - 1, from + steps[event.key]))];
      if (!span) return;
      event.preventDefault();
      spans[from]?.classList.remove("at");
      span.classList.add("at");
      span.scrollIntoView({ block: "nearest" });
      showTip(span, chunk);
    };
    return html`<div ref=${ref} class="tokens" tabindex="0" role="group"
      aria-label="Tokens: left and right go through them" aria-describedby="token-values"
      onMouseOver=${over} onMouseLeave=${hideTip} onKeyDown=${key} onBlur=${hideTip} />`;
  }

  function spanOf(piece, i) {
    const span = document.createElement("span");
    span.className = piece === "" ? "t part" : piece.includes("\n") ? "t ends" : "t";
    span.textContent = piece;
    span.dataset.i = i;
    return span;
  }

  function Messages({ messages }) {
    return (Array.isArray(messages) ? messages : []).map((message) => {
      const of = message && typeof message === "object" ? message : { content: message };
      return html`<div class="run"><p class="role text">${visible(of.role ?? "message")}</p>
        <div class="stream">${visible(of.content ?? "")}</div></div>`;
    });
  }

  // ------------------------------------------------------------------ one episode, or a group

  const isGood = (e) => e.status === "ok";

  function facts(e) {
    return [
      ...(isGood(e) ? [] : [e.status]), `reward ${number(e.reward)}`,
      ...(e.success === null ? [] : [e.success ? "success" : "no success"]), // null: nobody says
      counted(e.tokens, "token"), counted(e.turns, "turn"), e.stop_reason,
    ].join(", ");
  }

  function Episode({ episode, chunk, by, current }) {
    const told = chunk.episodes[episode.row] ?? {}, where = chunk.found.get(episode.row);
    const numbers = Object.entries(told.metrics ?? {});
    return html`<article class="episode" id=${`rollout-${episode.at}`} aria-current=${current}>
      <h4 class=${isGood(episode) ? "" : "bad"}>rollout ${number(episode.rollout)}</h4>
      <p class="faint text">${facts(episode)}</p>
      ${where
        ? html`${!isKnown(chunk, by, episode) && html`<p class="faint">Not coloured: its ${" "}
            ${COLOURS[by].name} is not known.</p>`}
            <${Tokens} chunk=${chunk} where=${where} by=${by} />`
        : html`<p class="faint">Its tokens were not kept.</p><${Messages}
            messages=${told.messages} />`}
      ${numbers.length > 0 && html`<p class="faint text">${numbers
        .map(([name, value]) => `${visible(name)} ${number(value)}`).join(", ")}</p>`}
      ${told.report && html`<p class="role">report</p><pre>${visible(told.report)}</pre>`}
      ${told.error && html`<p class="role bad">error</p><pre>${visible(told.error)}</pre>`}
    </article>`;
  }

  function Detail({ episode, episodes, asked, setBy, group, setGroup, choose }) {
    const [loaded, setLoaded] = useState(null);
    useEffect(hideTip, [episode.at, episode.iteration]);
    useEffect(() => {
      let wanted = true;
      chunk(episode.iteration)
        .then((found) => wanted && setLoaded({ iteration: episode.iteration, found }))
        .catch((error) => wanted && setLoaded({ iteration: episode.iteration, error }));
      return () => { wanted = false; };
    }, [episode]);
    const members = useMemo(() => episodes.filter((e) => e.iteration === episode.iteration
      && e.task === episode.task && e.seed === episode.seed), [episodes, episode]);
    const here = loaded?.iteration === episode.iteration ? loaded : null;
    const found = here?.found;
    const shown = group ? members : [episode];
    const auto = found && shown.every((e) => isKnown(found, "entropy", e)) ? "entropy" : "logp";
    const by = asked ?? auto;
    useLayoutEffect(() => { // the chosen one of those side by side comes into sight
      const one = document.getElementById(`rollout-${episode.at}`), row = one?.parentElement;
      if (!group || !row) return;
      const left = one.offsetLeft - row.offsetLeft, end = left + one.offsetWidth - row.clientWidth;
      row.scrollLeft = Math.min(left, Math.max(row.scrollLeft, end));
    }, [group, episode.at, Boolean(found)]);
    const keep = () => choose(episode); // what is looked at stays, whatever comes
    return html`<div class="detail" aria-live="off" onPointerEnter=${keep} onFocusIn=${keep}>
      <h3 class="text">${episode.task}</h3>
      <p class="faint">iteration ${number(episode.iteration)}, seed ${String(episode.seed ?? "\u2013")}</p>
      <div class="bar" role="group" aria-label="Rollouts of this task">
        ${members.map((e) => html`<button type="button" key=${e.at}
          class=${`chip ${isGood(e) ? "" : "bad"}`} aria-pressed=${e.at === episode.at}
          title=${facts(e)} onClick=${() => choose(e)}>${number(e.rollout)}: ${isGood(e)
            ? number(e.reward) : e.status}${e.success ? " \u2713" : ""}</button>`)}
        <label><input type="checkbox" checked=${group}
          onChange=${(event) => setGroup(event.target.checked)} /> side by side</label>
      </div>
      ${found?.tokens.logp && html`<div class="bar">
        <label>Colour by <select value=${by} id="colour" onChange=${(event) => setBy(event.target.value)}>
          ${Object.entries(COLOURS).map(([key, { name }]) => html`<option value=${key}>${name}</option>`)}
        </select></label> <${Legend} chunk=${found} by=${by} shown=${shown}
          members=${members} /></div>`}
      ${here?.error ? html`<p class="bad">These episodes cannot be read: ${String(here.error)}</p>`
        : here && !found ? html`<p>This file has no room for the episodes of iteration ${" "}
            ${number(episode.iteration)}: see them with <code>isentrope view</code>.</p>`
        : !found ? html`<p class="faint">Opening \u2026</p>`
        : html`<div class=${group ? "columns" : ""}>${shown.map((e) => html`<${Episode} key=${e.at}
            episode=${e} chunk=${found} by=${by} current=${group && e.at === episode.at
            ? "true" : undefined} />`)}</div>`}
    </div>`;
  }

  // ------------------------------------------------------------------ the list

  const ORDERS = {
    latest: ["latest first", (a, b) => b.at - a.at],
    first: ["in order", (a, b) => a.at - b.at],
    best: ["highest reward", (a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity) || b.at - a.at],
    worst: ["lowest reward", (a, b) => (a.reward ?? Infinity) - (b.reward ?? Infinity) || b.at - a.at],
    longest: ["most tokens", (a, b) => (b.tokens ?? 0) - (a.tokens ?? 0) || b.at - a.at],
  };
  const NONE = { task: "", iteration: "", status: "", success: "", low: "", high: "", order: "latest" };

  function chosenBy(filter, episodes) {
    const task = filter.task.toLowerCase();
    const low = filter.low === "" ? -Infinity : +filter.low;
    const high = filter.high === "" ? Infinity : +filter.high;
    const found = episodes.filter((e) =>
      (filter.iteration === "" || e.iteration === +filter.iteration)
      && (filter.status === "" || e.status === filter.status)
      && (filter.success === "" || e.success === +filter.success)
      && (low === -Infinity || (e.reward ?? NaN) >= low)
      && (high === Infinity || (e.reward ?? NaN) <= high)
      && (task === "" || e.task.toLowerCase().includes(task)));
    return found.sort(ORDERS[filter.order][1]);
  }

  function List({ found, chosen, pinned, choose, filter }) {
    const ref = useRef(), top = useRef(null), before = useRef(filter);
    const [view, setView] = useState({ top: 0, height: 600 });
    const look = () => {
      const { scrollTop, clientHeight } = ref.current;
      setView({ top: scrollTop, height: clientHeight });
      top.current = { at: found[Math.floor(scrollTop / ROW)]?.at, past: scrollTop % ROW };
    };
    const at = found.indexOf(chosen);
    useEffect(() => {
      look();
      addEventListener("resize", look);
      return () => removeEventListener("resize", look);
    }, [found]);
    useLayoutEffect(() => { // what came since pushes nothing away that is being read
      const row = ref.current.scrollTop ? found.findIndex((e) => e.at === top.current?.at) : -1;
      if (row >= 0) ref.current.scrollTop = row * ROW + top.current.past;
    }, [found]);
    useLayoutEffect(() => { // what was not chosen, but merely came and is first now, moves nothing
      const list = ref.current, filtered = before.current !== filter;
      before.current = filter;
      if (at < 0 || !(pinned || filtered)) return;
      if (at * ROW < list.scrollTop) list.scrollTop = at * ROW;
      const end = (at + 1) * ROW - list.clientHeight;
      if (end > list.scrollTop) list.scrollTop = end;
      look();
    }, [chosen?.at, filter]);
    const key = (event) => {
      const page = Math.max(1, Math.floor(view.height / ROW) - 1);
      const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page,
        Home: -Infinity, End: Infinity };
      if (!(event.key in steps) || !found.length) return;
      event.preventDefault();
      choose(found[Math.max(0, Math.min(found.length - 1, at + steps[event.key]))]);
    };
    const first = Math.max(0, Math.floor(view.top / ROW) - 8);
    const shown = found.slice(first, first + Math.ceil(view.height / ROW) + 16);
    return html`<div class="list" ref=${ref} tabindex="0" role="listbox" aria-label="Episodes"
        aria-activedescendant=${at < 0 ? undefined : `episode-${chosen.at}`}
        onScroll=${look} onKeyDown=${key}>
      <div style=${{ height: `${found.length * ROW}px`, position: "relative" }}>
        ${shown.map((e, k) => html`<div key=${e.at} id=${`episode-${e.at}`} role="option"
            class=${`row ${isGood(e) ? "" : "bad"}`} aria-selected=${e === chosen}
            aria-setsize=${found.length} aria-posinset=${first + k + 1}
            style=${{ top: `${(first + k) * ROW}px` }} onClick=${() => choose(e)}>
          <span class="number">${number(e.iteration)}</span>
          <span class="task"><bdi>${e.task}</bdi></span>
          <span class="number">${isGood(e) ? number(e.reward) : e.status}</span>
          <span>${e.success ? "\u2713" : ""}</span>
        </div>`)}
      </div></div>`;
  }

  function Filters({ filter, setFilter, statuses }) {
    const set = (name) => (event) => setFilter({ ...filter, [name]: event.target.value });
    const field = (name, label, type, more) => html`<label>${label} <input id=${`by-${name}`}
      type=${type} value=${filter[name]} onInput=${set(name)} ...${more} /></label>`;
    const options = (name, label, pairs) => html`<label>${label} <select id=${`by-${name}`}
      value=${filter[name]} onChange=${set(name)}>${pairs.map(([value, text]) => html`<option
      value=${value}>${text}</option>`)}</select></label>`;
    return html`<form class="bar" role="search" aria-label="Find episodes"
        onSubmit=${(event) => event.preventDefault()} onReset=${() => setFilter(NONE)}
        onKeyDown=${({ key, target }) => {
          if (key === "Enter" && target.matches("input")) place.querySelector(".list").focus();
        }}>
      ${field("task", "Task", "search", { placeholder: "any" })}
      ${field("iteration", "Iteration", "number", { min: 0, placeholder: "any" })}
      ${field("low", "Reward from", "number", { step: "any" })}
      ${field("high", "to", "number", { step: "any" })}
      ${options("success", "Success", [["", "any"], ["1", "yes"], ["0", "no"]])}
      ${options("status", "Status", [["", "any"], ...statuses.map((s) => [s, s])])}
      ${options("order", "Order", Object.entries(ORDERS).map(([k, [name]]) => [k, name]))}
      <button type="reset">Clear</button></form>`;
  }

  function Browser({ episodes, statuses }) {
    const [filter, setFilter] = useState(NONE);
    const [chosen, setChosen] = useState(null);
    const [by, setBy] = useState(null); // null: entropy where it is known, log-prob elsewhere
    const [group, setGroup] = useState(false);
    const found = useMemo(() => chosenBy(filter, episodes), [filter, episodes]);
    const at = chosen && episodes[chosen.at]; // the list may have been read again
    const episode = at && at.task === chosen.task ? at : found[0];
    useEffect(() => {
      if (at && !found.includes(at)) setChosen(null);
    }, [filter]);
    useEffect(() => {
      const go = (event) => {
        setFilter((before) => ({ ...before, iteration: String(event.detail) }));
        place.scrollIntoView({ behavior: "smooth" });
      };
      const key = (event) => {
        if (event.altKey || event.ctrlKey || event.metaKey) return;
        if (event.target.closest?.("input:not([type=checkbox]), select, textarea")) return;
        const move = { j: 1, k: -1 }[event.key];
        if (move && found.length) {
          const next = Math.max(0, Math.min(found.length - 1, found.indexOf(episode) + move));
          setChosen(found[next]);
        } else if (event.key === "g") setGroup((before) => !before);
        else if (event.key === "c" || event.key === "C") {
          const keys = Object.keys(COLOURS), step = event.key === "c" ? 1 : keys.length - 1;
          const now = document.getElementById("colour")?.value ?? "entropy";
          setBy(keys[(keys.indexOf(now) + step) % keys.length]);
        } else if (event.key === "/") document.getElementById("by-task").focus();
        else return;
        event.preventDefault();
      };
      document.addEventListener("iteration", go);
      document.addEventListener("keydown", key);
      return () => {
        document.removeEventListener("iteration", go);
        document.removeEventListener("keydown", key);
      };
    }, [found, episode]);
    return html`<${Filters} filter=${filter} setFilter=${setFilter} statuses=${statuses} />
      <p class="faint" role="status">${number(found.length)} of ${number(episodes.length)} episodes.
        ${" "}Keys: <kbd>j</kbd> <kbd>k</kbd> next and previous, <kbd>g</kbd> its group side by side,
        ${" "}<kbd>c</kbd> <kbd>C</kbd> next and previous colour, <kbd>/</kbd> search (<kbd>Enter</kbd>
        ${" "}leaves it); in the tokens <kbd>\u2190</kbd>
        ${" "}<kbd>\u2192</kbd> through them. A click on a chart's point offers its iteration.</p>
      <div class="panes">
        <${List} found=${found} chosen=${episode} pinned=${Boolean(at) && episode === at}
          choose=${setChosen} filter=${filter} />
        ${episode ? html`<${Detail} episode=${episode} episodes=${episodes} asked=${by} setBy=${setBy}
            group=${group} setGroup=${setGroup} choose=${setChosen} />`
          : html`<p>${episodes.length ? "No episode is like that." : "No episodes yet."}</p>`}
      </div>`;
  }

  let known = 0; // episodes

  async function show() {
    const index = asJson(await read("chunk-index"));
    const episodes = episodesOf(index);
    if (episodes.length < known) chunks.clear(); // a resumed run forgot some
    else chunks.delete(episodes[known - 1]?.iteration); // it may have grown
    known = episodes.length;
    render(html`<${Browser} episodes=${episodes} statuses=${index.names.status} />`, place);
  }

  const failed = (error) => { place.textContent = `The episodes cannot be read: ${error}`; };
  document.addEventListener("renewed", () => show().catch(failed));
  show().catch(failed);
})();
