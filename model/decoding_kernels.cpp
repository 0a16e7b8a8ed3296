// A decoding step on a CPU: one new token of a few rows goes through a whole model in one call.
//
// One decoded token costs one reading of all weights and of all keys and values. Here each of them is read once, in its
// order, by all threads together and in the width it is stored in. The threads are woken once a step; between its parts
// they wait for one another. A result is summed by one thread in one order: neither the number of threads nor that of
// the rows changes it. The structs are those of decoding_kernels.py; the letters of shapes stand in model/__init__.py.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

struct Linear {
    const void *weight;  // (O, I), null where a model has no such layer
    const float *scale;  // (O), of int8: row o of the matrix is scale[o] · weight[o]
    const float *bias;   // (O) or null
    int64_t O, I;
};

struct Norm {
    const float *weight, *bias;  // (C); the bias may be null
};

enum Activation : int64_t { GELU, TANH_GELU, RELU_SQUARED, SILU };

struct Block {
    Norm attention_norm, feed_forward_norm;
    Linear qkv, projection, gate, up, down;  // no gate but in SwiGLU
};

struct NgramTable {
    const float *weight;  // (n_rows, C), null where a model has none
    int64_t n_rows;
};

struct Model {
    const float *token_embedding;     // (V, C)
    const float *position_embedding;  // (longest context, C), or null without learned positions
    NgramTable bigrams, trigrams;
    const Block *blocks;
    int64_t V, n_blocks, C, H, K, D, F;
    Norm final_norm;
    int64_t subtracts_mean, activation;
    float norm_eps, qk_norm_eps;  // the second is negative where queries and keys are not normalised
};

struct Step {
    int64_t B, capacity;
    const int64_t *tokens;         // (B); one below 0 stands for nothing and is read as 0
    const int64_t *lengths;        // (B): how many positions of each row have been seen
    int64_t *history;              // (B, HISTORY): the tokens before these, the latest last; these join them
    float *outputs;                // (B, C)
    const float *cosines, *sines;  // of all positions, (more than any length, D), or null without rotary positions
    float *keys, *values;          // (n_blocks, B, K, capacity, D)
};

namespace {

// As in kv_cache.py and ngram_embedding.py.
constexpr int64_t HISTORY = 2;
constexpr int64_t MULTIPLIERS[] = {2654435761, 2246822519, 3266489917};

// Waking the other threads and waiting for them takes some microseconds, as long as so many multiplications.
constexpr int64_t WORTH_THREADS = 16384;
// Parts of a block between which the threads wait.
constexpr int64_t PARTS = 5;

inline float widen(float stored) { return stored; }
inline float widen(uint16_t stored) {
    const uint32_t bits = static_cast<uint32_t>(stored) << 16;  // bf16 is the upper half of a float
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <typename Stored>
float dot(const Stored *row, const float *input, int64_t size) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; i++) sum += widen(row[i]) * input[i];
    return sum;
}

// The largest multiple of a step, and how many products of such a number and an int8 a sum of 32 bits can hold.
constexpr float HIGHEST = 16383;
constexpr int64_t CHUNK = 1024;

float dot(const int8_t *row, const int16_t *input, int64_t size) {
    float total = 0;
    for (int64_t start = 0; start < size; start += CHUNK) {
        const int64_t end = std::min(size, start + CHUNK);
        int32_t sum = 0;
        for (int64_t i = start; i < end; i++) sum += row[i] * input[i];
        total += static_cast<float>(sum);
    }
    return total;
}

// Inputs (B, I) of a linear layer, as they are multiplied with weights of a width.
template <typename Stored>
struct Inputs {
    const float *rows;
    int64_t I;

    Inputs(const float *rows, int64_t, int64_t I) : rows(rows), I(I) {}
    float times(const Linear &layer, int64_t o, int64_t b) const {
        return dot(static_cast<const Stored *>(layer.weight) + o * I, rows + b * I, I);
    }
};

// Each row in multiples of a step of its own. Processors multiply pairs of whole numbers in one instruction, while
// widening int8 to fp32 takes so many that reading would have to wait; 15 bits lose nothing beside the weights' 8.
template <>
struct Inputs<int8_t> {
    std::vector<int16_t> multiples;
    std::vector<float> steps;
    int64_t I;

    Inputs(const float *rows, int64_t B, int64_t I) : multiples(B * I), steps(B), I(I) {
        for (int64_t b = 0; b < B; b++) {
            const float *row = rows + b * I;
            float largest = 0;
            for (int64_t i = 0; i < I; i++) {
                const float size = std::fabs(row[i]);
                largest = size > largest || std::isnan(size) ? size : largest;  // a NaN stays the largest
            }
            steps[b] = largest / HIGHEST;
            // Rows next to nothing become 0. One with a NaN or an infinity has multiples of 0, of which its step makes NaN.
            const bool is_number = largest > HIGHEST * std::numeric_limits<float>::min() && std::isfinite(largest);
            const float per_step = is_number ? HIGHEST / largest : 0;
            for (int64_t i = 0; i < I; i++)
                multiples[b * I + i] = is_number ? static_cast<int16_t>(std::nearbyint(row[i] * per_step)) : 0;
        }
    }
    float times(const Linear &layer, int64_t o, int64_t b) const {
        const auto *row = static_cast<const int8_t *>(layer.weight) + o * I;
        return dot(row, multiples.data() + b * I, I) * steps[b] * layer.scale[o];
    }
};

// Every number of inputs (B, I) · weightᵀ (I, O) + bias (O) is given to `take` with its place in (B, O). All threads
// that call this share the work, by outputs, and do not wait for one another at its end.
template <typename Stored, typename Take>
void linear(const Linear &layer, const float *inputs, int64_t B, Take take) {
    const Inputs<Stored> rows(inputs, B, layer.I);
#pragma omp for schedule(static) nowait
    for (int64_t o = 0; o < layer.O; o++)
        for (int64_t b = 0; b < B; b++)
            take(b * layer.O + o, rows.times(layer, o, b) + (layer.bias ? layer.bias[o] : 0));
}

// LayerNorm, or without subtracting the mean RMSNorm, of one row (C).
void normalize(const Model &model, const Norm &norm, const float *inputs, float *outputs) {
    const int64_t C = model.C;
    float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < C; c++) sum += inputs[c];
    const float mean = model.subtracts_mean ? sum / C : 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t c = 0; c < C; c++) squares += (inputs[c] - mean) * (inputs[c] - mean);
    const float scale = 1 / std::sqrt(squares / C + model.norm_eps);
    for (int64_t c = 0; c < C; c++)
        outputs[c] = (inputs[c] - mean) * scale * norm.weight[c] + (norm.bias ? norm.bias[c] : 0);
}

float activate(int64_t activation, float x) {
    switch (activation) {
        case GELU: return x / 2 * (1 + std::erf(x * 0.70710678f));  // √½
        case TANH_GELU:  // ½ (1 + tanh u) = 1 / (1 + exp(−2u)), and exp is the quicker one; u = √(2/π) (x + …)
            return x / (1 + std::exp(-1.59576912f * (x + 0.044715f * x * x * x)));
        case RELU_SQUARED: return x < 0 ? 0 : x * x;
        default: return x / (1 + std::exp(-x));
    }
}

// In place: root mean square 1 where eps is not negative, then turned where there are cosines; see positions.py.
void prepare(float *vector, float eps, const float *cosines, const float *sines, int64_t D) {
    if (eps >= 0) {
        const float scale = 1 / std::sqrt(dot(vector, vector, D) / D + eps);
        for (int64_t d = 0; d < D; d++) vector[d] *= scale;
    }
    if (cosines == nullptr) return;
    for (int64_t d = 0, e = D / 2; e < D; d++, e++) {
        const float first = vector[d], second = vector[e];
        vector[d] = first * cosines[d] + second * sines[d];
        vector[e] = second * cosines[e] + first * sines[e];
    }
}

// mixed (D): the values (S, D), weighted by the softmax of the products of the query with the keys (S, D).
void mix(const float *query, const float *keys, const float *values, float *mixed, std::vector<float> &weights,
         int64_t D) {
    const int64_t S = weights.size();
    const float scale = 1 / std::sqrt(static_cast<float>(D));
    float highest = -INFINITY, total = 0;
    for (int64_t s = 0; s < S; s++) {
        weights[s] = dot(keys + s * D, query, D) * scale;
        highest = std::fmax(highest, weights[s]);
    }
    for (int64_t s = 0; s < S; s++) total += weights[s] = std::exp(weights[s] - highest);
    std::fill(mixed, mixed + D, 0.0f);
    for (int64_t s = 0; s < S; s++)
        for (int64_t d = 0; d < D; d++) mixed[d] += weights[s] / total * values[s * D + d];
}

// heads (B, H + 2K, D), the queries, keys and values of the new positions, become mixed (B, H, D); the cache of the
// block takes in keys and values. The threads share rows and key heads, and wait for one another at the end.
void attend(const Model &model, const Step &step, int64_t block, float *heads, float *mixed) {
    const int64_t H = model.H, K = model.K, D = model.D, per_key = H / K;
#pragma omp for collapse(2) schedule(static)
    for (int64_t b = 0; b < step.B; b++) {
        for (int64_t k = 0; k < K; k++) {
            const float *cosines = step.cosines ? step.cosines + step.lengths[b] * D : nullptr;
            const float *sines = step.sines ? step.sines + step.lengths[b] * D : nullptr;
            const int64_t slot = step.lengths[b] % step.capacity, place = (block * step.B + b) * K + k;
            float *queries = heads + b * (H + 2 * K) * D, *key = queries + (H + k) * D, *value = key + K * D;
            float *keys = step.keys + place * step.capacity * D, *values = step.values + place * step.capacity * D;
            prepare(key, model.qk_norm_eps, cosines, sines, D);
            std::copy(key, key + D, keys + slot * D);
            std::copy(value, value + D, values + slot * D);
            std::vector<float> weights(std::min(step.lengths[b] + 1, step.capacity));
            for (int64_t h = k * per_key; h < (k + 1) * per_key; h++) {
                prepare(queries + h * D, model.qk_norm_eps, cosines, sines, D);
                mix(queries + h * D, keys, values, mixed + (b * H + h) * D, weights, D);
            }
        }
    }
}

// The row (C) of the last `order` tokens, as NgramEmbedding.rows in ngram_embedding.py; `earlier` ends with the latest.
const float *ngram_row(const NgramTable &table, int64_t order, int64_t token, const int64_t *earlier, int64_t C) {
    int64_t mixed = (token + 2) * MULTIPLIERS[0];
    for (int64_t back = 1; back < order; back++) mixed += (earlier[HISTORY - back] + 2) * MULTIPLIERS[back];
    return table.weight + (mixed ^ (mixed >> 15)) % table.n_rows * C;
}

// The input of the first block (B, C), as GPT.embed in gpt.py.
std::vector<float> embed(const Model &model, const Step &step) {
    const int64_t C = model.C;
    std::vector<float> hidden(step.B * C);
    for (int64_t b = 0; b < step.B; b++) {
        const auto add = [&](const float *embedding) {
            for (int64_t c = 0; c < C; c++) hidden[b * C + c] += embedding[c];
        };
        int64_t *earlier = step.history + b * HISTORY;
        add(model.token_embedding + std::max<int64_t>(step.tokens[b], 0) * C);
        if (model.position_embedding) add(model.position_embedding + step.lengths[b] * C);
        if (model.bigrams.weight) add(ngram_row(model.bigrams, 2, step.tokens[b], earlier, C));
        if (model.trigrams.weight) add(ngram_row(model.trigrams, 3, step.tokens[b], earlier, C));
        std::copy(earlier + 1, earlier + HISTORY, earlier);
        earlier[HISTORY - 1] = step.tokens[b];
    }
    return hidden;
}

// The path of GPT.hidden_states in gpt.py, and of Block.forward in block.py, block after block.
template <typename Stored>
void step_through_model(const Model &model, const Step &step) {
    const int64_t B = step.B, C = model.C, H = model.H, K = model.K, D = model.D;
    std::vector<float> heads(B * (H + 2 * K) * D), mixed(B * H * D), inner(B * model.F);
    std::vector<float> hidden = embed(model, step);
    const auto add_to_hidden = [&](int64_t at, float value) { hidden[at] += value; };
    const int64_t weights_of_block = C * ((H + 2 * K) * D + H * D + 2 * model.F);
#pragma omp parallel if (B * weights_of_block > PARTS * WORTH_THREADS)
    {
        // Each thread normalises for itself: that is quicker than to wait for another.
        std::vector<float> normed(B * C);
        for (int64_t index = 0; index < model.n_blocks; index++) {
            const Block &block = model.blocks[index];
            for (int64_t b = 0; b < B; b++) normalize(model, block.attention_norm, &hidden[b * C], &normed[b * C]);
            linear<Stored>(block.qkv, normed.data(), B, [&](int64_t at, float value) { heads[at] = value; });
#pragma omp barrier
            attend(model, step, index, heads.data(), mixed.data());
            linear<Stored>(block.projection, mixed.data(), B, add_to_hidden);
#pragma omp barrier
            for (int64_t b = 0; b < B; b++) normalize(model, block.feed_forward_norm, &hidden[b * C], &normed[b * C]);
            const Linear &activated = block.gate.weight ? block.gate : block.up;
            linear<Stored>(activated, normed.data(), B,
                           [&](int64_t at, float value) { inner[at] = activate(model.activation, value); });
            // A thread has the same outputs of both layers, so it need not wait.
            if (block.gate.weight)
                linear<Stored>(block.up, normed.data(), B, [&](int64_t at, float value) { inner[at] *= value; });
#pragma omp barrier
            linear<Stored>(block.down, inner.data(), B, add_to_hidden);
#pragma omp barrier
        }
#pragma omp for
        for (int64_t b = 0; b < B; b++) normalize(model, model.final_norm, &hidden[b * C], step.outputs + b * C);
    }
}

// A single layer: inputs (B, I) → outputs (B, O).
template <typename Stored>
void single_linear(const Linear &layer, const float *inputs, float *outputs, int64_t B) {
#pragma omp parallel if (layer.O * layer.I > WORTH_THREADS)
    linear<Stored>(layer, inputs, B, [=](int64_t at, float value) { outputs[at] = value; });
}

}  // namespace

#define FOR_WEIGHTS_OF(name, Stored)                                                                           \
    extern "C" bool step_through_model_##name(const Model *model, const Step *step) {                          \
        for (int64_t b = 0; b < step->B; b++)                                                                  \
            if (step->tokens[b] >= model->V) return false;                                                     \
        step_through_model<Stored>(*model, *step);                                                             \
        return true;                                                                                           \
    }                                                                                                          \
    extern "C" void linear_##name(const Linear *layer, const float *inputs, float *outputs, int64_t B) {       \
        single_linear<Stored>(*layer, inputs, outputs, B);                                                     \
    }
FOR_WEIGHTS_OF(fp32, float)
FOR_WEIGHTS_OF(bf16, uint16_t)
FOR_WEIGHTS_OF(int8, int8_t)
