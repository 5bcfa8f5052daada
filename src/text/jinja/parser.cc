#include "text/jinja/parser.h"

#include <unordered_map>

#include "text/jinja/builtins.h"
#include "text/jinja/lexer.h"

namespace m2::text::jinja {
namespace {

using Kind = Token::Kind;

// Binding strength of the operators between operands, weakest first.
enum Strength { kOr = 1, kAnd, kNot, kCompare, kSum, kConcat, kProduct, kPower };

struct Operator {
  std::string_view symbol;
  Strength strength;
  Arithmetic arithmetic;
};

constexpr Operator kArithmetic[] = {
    {"+", kSum, Arithmetic::add},
    {"-", kSum, Arithmetic::subtract},
    {"*", kProduct, Arithmetic::multiply},
    {"/", kProduct, Arithmetic::divide},
    {"//", kProduct, Arithmetic::floor_divide},
    {"%", kProduct, Arithmetic::modulo},
    {"**", kPower, Arithmetic::power},
};

constexpr std::pair<std::string_view, Comparison> kComparisons[] = {
    {"==", Comparison::eq}, {"!=", Comparison::ne}, {"<", Comparison::lt},
    {"<=", Comparison::le}, {">", Comparison::gt},  {">=", Comparison::ge},
};

// What a macro's body was seen to mention.
struct SpecialNames {
  bool caller = false, varargs = false, kwargs = false;
};

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(tokenize(source)) {}

  Program run() {
    Program program;
    program.body = parse_block({});
    if (!missing_.empty()) raise("{}", missing_.front());
    program.names = std::move(names_);
    return program;
  }

 private:
  // --- Tokens ---

  const Token& peek(size_t ahead = 0) const {
    return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
  }
  Token next() {
    Token token = peek();
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  bool skip_symbol(std::string_view symbol) {
    if (!peek().is_symbol(symbol)) return false;
    return next(), true;
  }
  bool skip_name(std::string_view name) {
    if (!peek().is_name(name)) return false;
    return next(), true;
  }
  void expect_symbol(std::string_view symbol) {
    if (!skip_symbol(symbol)) fail("expected '{}', got {}", symbol, describe(peek()));
  }
  void expect(Kind kind, std::string_view what) {
    if (peek().kind != kind) fail("expected {}, got {}", what, describe(peek()));
    next();
  }
  std::string expect_name() {
    if (peek().kind != Kind::name) fail("expected a name, got {}", describe(peek()));
    return next().text;
  }

  static std::string describe(const Token& token) {
    switch (token.kind) {
      case Kind::end:
        return "the end of the template";
      case Kind::variable_end:
        return "'}}'";
      case Kind::block_end:
        return "'%}'";
      case Kind::name:
      case Kind::symbol:
        return "'" + token.text + "'";
      case Kind::text:
        return "a string";
      case Kind::integer:
      case Kind::real:
        return "a number";
      default:
        return "template text";
    }
  }

  template <class... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    raise("line {}: {}", peek().line, fmt::format(format, std::forward<Args>(args)...));
  }

  // --- Depth ---

  // Recursion while parsing, for as long as it lives.
  class Nesting {
   public:
    explicit Nesting(Parser& parser) : parser_(parser) {
      if (++parser_.depth_ > kMaxTemplateDepth) parser_.fail_depth();
    }
    ~Nesting() { --parser_.depth_; }

   private:
    Parser& parser_;
  };

  [[noreturn]] void fail_depth() const {
    exhausted("line {}: the template nests deeper than {} levels (max_depth)", peek().line,
              kMaxTemplateDepth);
  }

  // Records that `child` hangs below `parent`: chains such as a+b+c nest without recursion here.
  void adopt(Expr& parent, const ExprPtr& child) const {
    if (!child) return;
    parent.height = std::max(parent.height, child->height + 1);
    if (parent.height > kMaxTemplateDepth) fail_depth();
  }
  void adopt(Expr& parent, const CallArguments& arguments) const {
    for (const ExprPtr& item : arguments.positional) adopt(parent, item);
    for (const auto& [name, item] : arguments.named) adopt(parent, item);
    adopt(parent, arguments.more_positional);
    adopt(parent, arguments.more_named);
  }

  NameId intern(const std::string& name) {
    const auto [entry, is_new] = name_ids_.try_emplace(name, static_cast<NameId>(names_.size()));
    if (is_new) names_.push_back(name);
    return entry->second;
  }

  // --- Blocks ---

  using Ends = std::initializer_list<std::string_view>;

  bool at_any(Ends ends) const {
    for (const std::string_view end : ends)
      if (peek().is_name(end)) return true;
    return false;
  }

  // Statements up to a tag named in `ends` (its name is the next token), or to the template's end
  // if `ends` is empty.
  Block parse_block(Ends ends) {
    const Nesting nesting(*this);
    Block block;
    while (peek().kind != Kind::end) {
      const Token token = next();
      if (token.kind == Kind::data) {
        auto data = std::make_unique<DataStmt>(token.line);
        data->text = token.text;
        block.push_back(std::move(data));
      } else if (token.kind == Kind::variable_begin) {
        auto print = std::make_unique<PrintStmt>(token.line);
        print->value = parse_row();
        expect(Kind::variable_end, "'}}'");
        block.push_back(std::move(print));
      } else {
        if (at_any(ends)) return block;
        parse_statement(block);
        expect(Kind::block_end, "'%}'");
      }
    }
    if (ends.size() > 0)
      fail("Unexpected end of template. Jinja was looking for the tag '{}'.", *(ends.end() - 1));
    return block;
  }

  // The body of a statement: from the end of its tag to one of `ends`.
  Block parse_body(Ends ends) {
    skip_symbol(":");
    expect(Kind::block_end, "'%}'");
    return parse_block(ends);
  }
  // The same, with one possible end, which is consumed.
  Block parse_body_to(std::string_view end) {
    Block body = parse_body({end});
    next();
    return body;
  }

  void parse_statement(Block& block) {
    const int line = peek().line;
    const std::string tag = peek().kind == Kind::name ? next().text : "";
    if (tag == "set") return parse_set(block, line);
    if (tag == "if") return parse_if(block, line);
    if (tag == "for") return parse_for(block, line);
    if (tag == "macro") return parse_macro(block, line);
    if (tag == "call") return parse_call_block(block, line);
    if (tag == "filter") return parse_filter_block(block, line);
    if (tag == "with") return parse_with(block, line);
    if (tag == "generation") return parse_generation(block, line);
    if (tag == "print") return parse_print(block, line);
    if (tag == "break") return parse_jump<BreakStmt>(block, line, tag);
    if (tag == "continue") return parse_jump<ContinueStmt>(block, line, tag);
    for (const std::string_view known :
         {"include", "import", "from", "extends", "block", "autoescape"}) {
      if (tag == known)
        throw Failure{
            Code::unsupported,
            fmt::format("line {}: the tag '{}' is not supported in a chat template", line, tag)};
    }
    raise("line {}: Encountered unknown tag '{}'.", line, tag);
  }

  void parse_set(Block& block, int line) {
    Target target = parse_target({.with_attributes = true});
    if (skip_symbol("=")) {
      auto set = std::make_unique<SetStmt>(line);
      set->target = std::move(target);
      set->value = parse_row();
      return block.push_back(std::move(set));
    }
    auto set = std::make_unique<SetBlockStmt>(line);
    set->target = std::move(target);
    const Inner inner(*this);
    const NoLoop no_loop(*this);
    if (peek().is_symbol("|")) set->filter = parse_filters(nullptr);
    set->body = parse_body_to("endset");
    block.push_back(std::move(set));
  }

  void parse_if(Block& block, int line) {
    const Conditional conditional(*this);
    auto node = std::make_unique<IfStmt>(line);
    std::string tag;
    do {
      ExprPtr condition = parse_row({.with_conditional = false});
      Block body = parse_body({"elif", "else", "endif"});
      node->branches.emplace_back(std::move(condition), std::move(body));
      tag = next().text;
    } while (tag == "elif");
    if (tag == "else") node->otherwise = parse_body_to("endif");
    block.push_back(std::move(node));
  }

  void parse_for(Block& block, int line) {
    auto node = std::make_unique<ForStmt>(line);
    node->target = parse_target({.stop = "in"});
    if (!skip_name("in")) fail("expected 'in', got {}", describe(peek()));
    node->items = parse_row({.with_conditional = false, .stop = "recursive"});
    const Inner inner(*this);
    if (skip_name("if")) node->condition = parse_expression();
    if (peek().is_name("recursive"))
      throw Failure{Code::unsupported,
                    fmt::format("line {}: recursive loops are not supported", line)};
    ++loop_depth_;
    node->body = parse_body({"endfor", "else"});
    --loop_depth_;
    if (next().text == "else") node->otherwise = parse_body_to("endfor");
    block.push_back(std::move(node));
  }

  void parse_macro(Block& block, int line) {
    auto node = std::make_unique<MacroStmt>(line);
    node->macro.name = expect_name();
    node->name = intern(node->macro.name);
    parse_macro_body(node->macro, "endmacro", [&] { parse_parameters(node->macro); });
    block.push_back(std::move(node));
  }

  void parse_call_block(Block& block, int line) {
    auto node = std::make_unique<CallBlockStmt>(line);
    node->caller.name = "caller";
    if (peek().is_symbol("(")) parse_parameters(node->caller);
    node->call = parse_expression();
    if (node->call->kind != Expr::Kind::call) fail("expected call");
    parse_macro_body(node->caller, "endcall", [] {});
    block.push_back(std::move(node));
  }

  // Parses a body and notes the special names it reads.
  template <class Head>
  void parse_macro_body(MacroBody& macro, std::string_view end, Head&& head) {
    const Inner inner(*this);
    const NoLoop no_loop(*this);
    macros_.emplace_back();
    head();
    macro.body = parse_body_to(end);
    macro.reads_caller = macros_.back().caller;
    macro.reads_varargs = macros_.back().varargs;
    macro.reads_kwargs = macros_.back().kwargs;
    macros_.pop_back();
  }

  void parse_parameters(MacroBody& macro) {
    expect_symbol("(");
    while (!peek().is_symbol(")")) {
      if (!macro.parameters.empty()) expect_symbol(",");
      Parameter parameter;
      parameter.name = intern(expect_name());
      if (skip_symbol("=")) {
        parameter.standard = parse_expression();
      } else if (!macro.parameters.empty() && macro.parameters.back().standard) {
        fail("non-default argument follows default argument");
      }
      macro.parameters.push_back(std::move(parameter));
    }
    expect_symbol(")");
  }

  void parse_filter_block(Block& block, int line) {
    const Inner inner(*this);
    const NoLoop no_loop(*this);
    auto node = std::make_unique<FilterBlockStmt>(line);
    node->filter = parse_filters(parse_filter(nullptr));
    node->body = parse_body_to("endfilter");
    block.push_back(std::move(node));
  }

  void parse_with(Block& block, int line) {
    const Inner inner(*this);
    auto node = std::make_unique<WithStmt>(line);
    while (peek().kind != Kind::block_end) {
      if (!node->variables.empty()) expect_symbol(",");
      Target target = parse_target({});
      expect_symbol("=");
      node->variables.emplace_back(std::move(target), parse_expression());
    }
    node->body = parse_body_to("endwith");
    block.push_back(std::move(node));
  }

  void parse_generation(Block& block, int line) {
    const Inner inner(*this);
    const NoLoop no_loop(*this);
    auto node = std::make_unique<ScopeStmt>(line);
    node->body = parse_body_to("endgeneration");
    block.push_back(std::move(node));
  }

  void parse_print(Block& block, int line) {
    for (bool first = true; peek().kind != Kind::block_end; first = false) {
      if (!first) expect_symbol(",");
      auto print = std::make_unique<PrintStmt>(line);
      print->value = parse_expression();
      block.push_back(std::move(print));
    }
  }

  template <class Jump>
  void parse_jump(Block& block, int line, std::string_view tag) {
    if (loop_depth_ == 0) fail("'{}' outside of a loop", tag);
    block.push_back(std::make_unique<Jump>(line));
  }

  // Marks a body whose text is collected: break and continue cannot leave it.
  class NoLoop {
   public:
    explicit NoLoop(Parser& parser)
        : parser_(parser), saved_(std::exchange(parser.loop_depth_, 0)) {}
    ~NoLoop() { parser_.loop_depth_ = saved_; }

   private:
    Parser& parser_;
    int saved_;
  };

  // --- Targets of assignments ---

  struct TargetOptions {
    bool with_attributes = false;
    std::string_view stop = {};  // a name that ends a row
  };

  Target parse_target(TargetOptions options) {
    Target first = parse_one_target(options);
    if (!peek().is_symbol(",")) return first;
    Target row;
    row.kind = Target::Kind::row;
    row.row.push_back(std::move(first));
    while (skip_symbol(",")) {
      if (at_row_end(options.stop) || peek().is_symbol("=")) break;
      row.row.push_back(parse_one_target(options));
    }
    return row;
  }

  Target parse_one_target(TargetOptions options) {
    const Nesting nesting(*this);
    if (skip_symbol("(")) {
      Target inside = parse_target(options);
      expect_symbol(")");
      return inside;
    }
    Target target;
    const std::string name = expect_name();
    if (name == "true" || name == "false" || name == "none" || name == "True" || name == "False" ||
        name == "None")
      fail("can't assign to '{}'", name);
    target.name = intern(name);
    if (options.with_attributes && skip_symbol(".")) {
      target.kind = Target::Kind::attribute;
      target.attribute = expect_name();
    }
    return target;
  }

  // --- Expressions ---

  struct RowOptions {
    bool with_conditional = true;
    bool in_parentheses = false;
    std::string_view stop = {};
  };

  bool at_row_end(std::string_view stop) const {
    const Token& token = peek();
    return token.kind == Kind::variable_end || token.kind == Kind::block_end ||
           token.is_symbol(")") || (!stop.empty() && token.is_name(stop));
  }

  // An expression, or a tuple of them separated by commas.
  ExprPtr parse_row(RowOptions options = {true, false, {}}) {
    auto tuple = std::make_unique<TupleExpr>(peek().line);
    bool has_comma = false;
    while (!at_row_end(options.stop)) {
      tuple->items.push_back(options.with_conditional ? parse_expression() : parse_binary(kOr));
      adopt(*tuple, tuple->items.back());
      if (!skip_symbol(",")) break;
      has_comma = true;
    }
    if (!has_comma && !tuple->items.empty()) return std::move(tuple->items[0]);
    if (!has_comma && !options.in_parentheses)
      fail("Expected an expression, got {}", describe(peek()));
    return tuple;
  }

  ExprPtr parse_expression() {
    const Nesting nesting(*this);
    const size_t missing_before = missing_.size();
    ExprPtr value = parse_binary(kOr);
    while (peek().is_name("if")) {
      value = parse_conditional(std::move(value));
      missing_.resize(missing_before);
    }
    return value;
  }

  ExprPtr parse_conditional(ExprPtr value) {
    auto node = std::make_unique<ConditionalExpr>(next().line);
    node->value = std::move(value);
    node->condition = parse_binary(kOr);
    if (skip_name("else")) node->otherwise = parse_expression();
    adopt(*node, node->value);
    adopt(*node, node->condition);
    adopt(*node, node->otherwise);
    return node;
  }

  // Operators that bind at least as strongly as `weakest`.
  ExprPtr parse_binary(int weakest) {
    ExprPtr left = weakest <= kNot && peek().is_name("not") ? parse_not() : parse_unary(true);
    while (true) {
      if (weakest <= kCompare && at_comparison()) {
        left = parse_compare(std::move(left));
      } else if (weakest <= kConcat && peek().is_symbol("~")) {
        left = parse_concat(std::move(left));
      } else if (const Operator* op = peek_arithmetic(); op && op->strength >= weakest) {
        auto node = pair<ArithmeticExpr>(std::move(left), op->strength + 1);
        node->op = op->arithmetic;
        left = std::move(node);
      } else if (weakest <= kAnd && peek().is_name("and")) {
        left = pair<AndExpr>(std::move(left), kNot);
      } else if (weakest <= kOr && peek().is_name("or")) {
        left = pair<OrExpr>(std::move(left), kAnd);
      } else {
        return left;
      }
    }
  }

  // The node of an operator that is the next token.
  template <class Node>
  std::unique_ptr<Node> pair(ExprPtr left, int right_strength) {
    auto node = std::make_unique<Node>(next().line);
    node->left = std::move(left);
    node->right = parse_binary(right_strength);
    adopt(*node, node->left);
    adopt(*node, node->right);
    return node;
  }

  const Operator* peek_arithmetic() const {
    if (peek().kind != Kind::symbol) return nullptr;
    for (const Operator& op : kArithmetic)
      if (peek().text == op.symbol) return &op;
    return nullptr;
  }

  ExprPtr parse_not() {
    const Nesting nesting(*this);
    const int line = next().line;
    return unary<NotExpr>(line, parse_binary(kNot));
  }

  template <class Node>
  ExprPtr unary(int line, ExprPtr operand) {
    auto node = std::make_unique<Node>(line);
    node->operand = std::move(operand);
    adopt(*node, node->operand);
    return node;
  }

  bool at_comparison() const {
    if (peek().is_name("in")) return true;
    if (peek().is_name("not")) return peek(1).is_name("in");
    if (peek().kind != Kind::symbol) return false;
    for (const auto& [symbol, op] : kComparisons)
      if (peek().text == symbol) return true;
    return false;
  }

  Comparison next_comparison() {
    const Token token = next();
    if (token.is_name("in")) return Comparison::in;
    if (token.is_name("not")) return next(), Comparison::not_in;
    for (const auto& [symbol, op] : kComparisons)
      if (token.text == symbol) return op;
    fail("expected a comparison");
  }

  ExprPtr parse_compare(ExprPtr first) {
    auto node = std::make_unique<CompareExpr>(peek().line);
    node->first = std::move(first);
    adopt(*node, node->first);
    while (at_comparison()) {
      const Comparison op = next_comparison();
      node->rest.emplace_back(op, parse_binary(kSum));
      adopt(*node, node->rest.back().second);
    }
    return node;
  }

  ExprPtr parse_concat(ExprPtr first) {
    auto node = std::make_unique<ConcatExpr>(peek().line);
    adopt(*node, first);
    node->parts.push_back(std::move(first));
    while (skip_symbol("~")) {
      node->parts.push_back(parse_binary(kProduct));
      adopt(*node, node->parts.back());
    }
    return node;
  }

  ExprPtr parse_unary(bool with_filters) {
    const Nesting nesting(*this);
    const int line = peek().line;
    ExprPtr node;
    if (skip_symbol("-")) {
      node = unary<NegateExpr>(line, parse_unary(false));
    } else if (skip_symbol("+")) {
      node = unary<PositiveExpr>(line, parse_unary(false));
    } else {
      node = parse_primary();
    }
    node = parse_postfix(std::move(node));
    return with_filters ? parse_filters_and_tests(std::move(node)) : std::move(node);
  }

  ExprPtr parse_primary() {
    const Token token = next();
    switch (token.kind) {
      case Kind::name:
        return parse_name(token);
      case Kind::text:
        return parse_text(token);
      case Kind::integer:
        return constant(token.line, token.integer);
      case Kind::real:
        return constant(token.line, token.real);
      default:
        break;
    }
    if (token.is_symbol("[")) return parse_list(token.line);
    if (token.is_symbol("{")) return parse_dict(token.line);
    if (!token.is_symbol("(")) raise("line {}: unexpected {}", token.line, describe(token));
    ExprPtr inside = parse_row({.in_parentheses = true});
    expect_symbol(")");
    return inside;
  }

  static ExprPtr constant(int line, Value value) {
    auto node = std::make_unique<ConstantExpr>(line);
    node->value = std::move(value);
    return node;
  }

  ExprPtr parse_name(const Token& token) {
    const std::string& name = token.text;
    if (name == "true" || name == "True") return constant(token.line, true);
    if (name == "false" || name == "False") return constant(token.line, false);
    if (name == "none" || name == "None") return constant(token.line, None{});
    for (SpecialNames& macro : macros_) {
      macro.caller |= name == "caller";
      macro.varargs |= name == "varargs";
      macro.kwargs |= name == "kwargs";
    }
    auto node = std::make_unique<NameExpr>(token.line);
    node->name = intern(name);
    return node;
  }

  ExprPtr parse_text(const Token& token) {
    std::string text = token.text;
    while (peek().kind == Kind::text) text += next().text;
    return constant(token.line, Value::text(text));
  }

  ExprPtr parse_list(int line) {
    auto node = std::make_unique<ListExpr>(line);
    while (!peek().is_symbol("]")) {
      node->items.push_back(parse_expression());
      adopt(*node, node->items.back());
      if (!skip_symbol(",")) break;
    }
    expect_symbol("]");
    return node;
  }

  ExprPtr parse_dict(int line) {
    auto node = std::make_unique<DictExpr>(line);
    while (!peek().is_symbol("}")) {
      ExprPtr key = parse_expression();
      expect_symbol(":");
      ExprPtr value = parse_expression();
      adopt(*node, key);
      adopt(*node, value);
      node->entries.emplace_back(std::move(key), std::move(value));
      if (!skip_symbol(",")) break;
    }
    expect_symbol("}");
    return node;
  }

  // --- What follows an operand ---

  ExprPtr parse_postfix(ExprPtr node) {
    while (true) {
      if (peek().is_symbol(".")) {
        node = parse_attribute(std::move(node));
      } else if (peek().is_symbol("[")) {
        node = parse_subscript(std::move(node));
      } else if (peek().is_symbol("(")) {
        node = parse_call(std::move(node));
      } else {
        return node;
      }
    }
  }

  ExprPtr parse_filters_and_tests(ExprPtr node) {
    while (true) {
      if (peek().is_symbol("|")) {
        node = parse_filters(std::move(node));
      } else if (peek().is_name("is")) {
        node = parse_test(std::move(node));
      } else if (peek().is_symbol("(")) {
        node = parse_call(std::move(node));
      } else {
        return node;
      }
    }
  }

  ExprPtr parse_attribute(ExprPtr object) {
    const int line = next().line;
    if (peek().kind == Kind::integer) return item(line, std::move(object), parse_primary());
    auto node = std::make_unique<AttributeExpr>(line);
    node->object = std::move(object);
    node->name = expect_name();
    adopt(*node, node->object);
    return node;
  }

  ExprPtr item(int line, ExprPtr object, ExprPtr index) const {
    auto node = std::make_unique<ItemExpr>(line);
    node->object = std::move(object);
    node->index = std::move(index);
    adopt(*node, node->object);
    adopt(*node, node->index);
    return node;
  }

  ExprPtr parse_subscript(ExprPtr object) {
    const int line = next().line;
    ExprPtr start = peek().is_symbol(":") ? nullptr : parse_expression();
    if (skip_symbol("]")) return item(line, std::move(object), std::move(start));
    if (!peek().is_symbol(":")) fail("expected ']', got {}", describe(peek()));
    auto node = std::make_unique<SliceExpr>(line);
    node->object = std::move(object);
    node->start = std::move(start);
    if (skip_symbol(":")) node->stop = parse_slice_part();
    if (skip_symbol(":")) node->step = parse_slice_part();
    expect_symbol("]");
    for (const ExprPtr* part : {&node->object, &node->start, &node->stop, &node->step})
      adopt(*node, *part);
    return node;
  }

  ExprPtr parse_slice_part() {
    return peek().is_symbol(":") || peek().is_symbol("]") ? nullptr : parse_expression();
  }

  ExprPtr parse_call(ExprPtr function) {
    auto node = std::make_unique<CallExpr>(peek().line);
    node->function = std::move(function);
    node->arguments = parse_arguments();
    adopt(*node, node->function);
    adopt(*node, node->arguments);
    return node;
  }

  CallArguments parse_arguments() {
    CallArguments arguments;
    expect_symbol("(");
    while (!peek().is_symbol(")")) {
      parse_argument(arguments);
      if (!skip_symbol(",")) break;
    }
    expect_symbol(")");
    return arguments;
  }

  void parse_argument(CallArguments& arguments) {
    const bool after_row = arguments.more_positional || arguments.more_named;
    if (peek().is_symbol("*") && !after_row) {
      next();
      arguments.more_positional = parse_expression();
    } else if (peek().is_symbol("**") && !arguments.more_named) {
      next();
      arguments.more_named = parse_expression();
    } else if (peek().kind == Kind::name && peek(1).is_symbol("=") && !arguments.more_named) {
      std::string name = next().text;
      next();
      arguments.named.emplace_back(std::move(name), parse_expression());
    } else {
      if (after_row || !arguments.named.empty())
        fail("invalid syntax for function call expression");
      arguments.positional.push_back(parse_expression());
    }
  }

  ExprPtr parse_filters(ExprPtr node) {
    while (skip_symbol("|")) node = parse_filter(std::move(node));
    return node;
  }

  std::string parse_dotted_name() {
    std::string name = expect_name();
    while (skip_symbol(".")) name += "." + expect_name();
    return name;
  }

  ExprPtr parse_filter(ExprPtr input) {
    auto node = std::make_unique<FilterExpr>(peek().line);
    node->input = std::move(input);
    node->name = parse_dotted_name();
    node->builtin = find_filter(node->name);
    if (!node->builtin) miss("filter", node->name);
    if (peek().is_symbol("(")) node->arguments = parse_arguments();
    adopt(*node, node->input);
    adopt(*node, node->arguments);
    return node;
  }

  ExprPtr parse_test(ExprPtr input) {
    const int line = next().line;
    const bool negated = skip_name("not");
    auto node = std::make_unique<TestExpr>(line);
    node->input = std::move(input);
    node->name = parse_dotted_name();
    node->builtin = find_test(node->name);
    if (!node->builtin) miss("test", node->name);
    if (peek().is_symbol("(")) {
      node->arguments = parse_arguments();
    } else if (at_test_argument()) {
      node->arguments.positional.push_back(parse_postfix(parse_primary()));
    }
    adopt(*node, node->input);
    adopt(*node, node->arguments);
    if (!negated) return node;
    return unary<NotExpr>(line, std::move(node));
  }

  // "x is divisibleby 3": one argument may follow without parentheses.
  bool at_test_argument() const {
    const Token& token = peek();
    if (token.is_name("is")) fail("You cannot chain multiple tests with is");
    if (token.kind == Kind::name)
      return !token.is_name("else") && !token.is_name("or") && !token.is_name("and");
    return token.kind == Kind::text || token.kind == Kind::integer || token.kind == Kind::real ||
           token.is_symbol("[") || token.is_symbol("{");
  }

  // --- Names of filters and tests that do not exist ---
  //
  // Inside of an if statement or a conditional expression they may never be reached, and fail only
  // when they are. A new scope inside of an if is strict again. Both as in the reference.

  void miss(std::string_view what, std::string_view name) {
    if (!forgiving_)
      missing_.push_back(fmt::format("line {}: No {} named '{}'.", peek().line, what, name));
  }

  template <bool Forgiving>
  class Mode {
   public:
    explicit Mode(Parser& parser)
        : parser_(parser), saved_(std::exchange(parser.forgiving_, Forgiving)) {}
    ~Mode() { parser_.forgiving_ = saved_; }

   private:
    Parser& parser_;
    bool saved_;
  };
  using Conditional = Mode<true>;
  using Inner = Mode<false>;

  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0;
  int loop_depth_ = 0;
  bool forgiving_ = false;
  std::vector<std::string> missing_;
  std::vector<SpecialNames> macros_;  // of the macros around this place
  std::vector<std::string> names_;
  std::unordered_map<std::string, NameId> name_ids_;
};

}  // namespace

Program parse(std::string_view source) {
  return Parser(source).run();
}

}  // namespace m2::text::jinja
