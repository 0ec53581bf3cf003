// Which clips sound alike, by the cosine of their vectors.

/**
 * {rows: [{clip, cosine}], centred}, the likest first. Vectors of one model all point nearly the same way:
 * from three clips on, `centred`, their mean is taken off, and the cosine is of what tells them apart.
 */
export function nearest(clip, clips) {
  const group = clips.filter((other) => other.space !== null && other.space === clip.space);
  const centred = group.length >= 3;
  const mean = centred ? meanOf(group.map(vectorOf)) : vectorOf(clip).map(() => 0);
  const moved = (other) => vectorOf(other).map((value, i) => value - mean[i]);
  const own = moved(clip);
  const rows = group
    .filter((other) => other !== clip)
    .map((other) => ({ clip: other, cosine: cosine(own, moved(other)) }));
  return { rows: rows.sort((a, b) => b.cosine - a.cosine), centred };
}

export const vectorOf = (clip) => clip.answer.embedding.embedding;

function meanOf(vectors) {
  return vectors[0].map((_, i) => vectors.reduce((sum, vector) => sum + vector[i], 0) / vectors.length);
}

/** 0 for a vector without a direction. */
function cosine(a, b) {
  const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
  const norms = Math.sqrt(dot(a, a) * dot(b, b));
  return norms ? dot(a, b) / norms : 0;
}
