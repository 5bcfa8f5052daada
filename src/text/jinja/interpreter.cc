#include "text/jinja/interpreter.h"

#include "text/jinja/builtins.h"
#include "text/jinja/operators.h"

namespace m2::text::jinja {

// The variables a stretch of the template has set, inside of those around it.
class Scope {
 public:
  explicit Scope(std::shared_ptr<Scope> outer) : outer_(std::move(outer)) {}

  void set(NameId name, Value value) {
    for (auto& [id, old] : variables_)
      if (id == name) return void(old = std::move(value));
    variables_.emplace_back(name, std::move(value));
  }

  // The variable of this or an outer scope, or null.
  const Value* find(NameId name) const {
    for (const Scope* scope = this; scope; scope = scope->outer_.get())
      for (const auto& [id, value] : scope->variables_)
        if (id == name) return &value;
    return nullptr;
  }

  void clear() { variables_.clear(); }

 private:
  std::shared_ptr<Scope> outer_;
  std::vector<std::pair<NameId, Value>> variables_;
};

namespace {

// A macro with the scope it was defined in. The interpreter owns that scope (`kept_`), not the
// macro: scopes hold macros, and two owners would never let go of each other.
class Macro : public Callable {
 public:
  Macro(const MacroBody& body, std::weak_ptr<Scope> scope)
      : body_(body), scope_(std::move(scope)) {}

  Value call(Interpreter& interpreter, const Arguments& arguments) const override {
    return interpreter.call_macro(body_, scope_.lock(), arguments);
  }
  std::string_view name() const override { return body_.name; }

 private:
  const MacroBody& body_;
  std::weak_ptr<Scope> scope_;
};

// `value` in place of *slot for as long as it lives.
template <class T>
class Swapped {
 public:
  Swapped(T& slot, T value) : slot_(slot), saved_(std::exchange(slot, std::move(value))) {}
  ~Swapped() { slot_ = std::move(saved_); }
  Swapped(const Swapped&) = delete;
  Swapped& operator=(const Swapped&) = delete;

 private:
  T& slot_;
  T saved_;
};

template <class Node>
const Node& as(const Expr& node) {
  return static_cast<const Node&>(node);
}
template <class Node>
const Node& as(const Stmt& node) {
  return static_cast<const Node&>(node);
}

}  // namespace

Interpreter::Interpreter(const Program& program, const Json& variables,
                         const TemplateLimits& limits)
    : program_(program), budget_(limits), context_(program.names.size()) {
  for (NameId id = 0; id < program.names.size(); ++id) {
    const std::string& name = program.names[id];
    note_special(name, id);
    if (const auto found = variables.find(name); found != variables.end()) {
      context_[id] = from_json(*found, budget_);
    } else if (const Builtin* function = find_function(name)) {
      context_[id] = make_function(*function);
    }
  }
}

Interpreter::~Interpreter() = default;

void Interpreter::note_special(std::string_view name, NameId id) {
  if (name == "loop") special_.loop = id;
  if (name == "caller") special_.caller = id;
  if (name == "varargs") special_.varargs = id;
  if (name == "kwargs") special_.kwargs = id;
}

TracedText Interpreter::run() {
  TextWriter out(budget_);
  out_ = &out;
  run_in(std::make_shared<Scope>(nullptr), program_.body);
  return out.take();
}

Value Interpreter::make_namespace(std::vector<std::pair<std::string, Value>> attributes) {
  budget_.step(1 + attributes.size() * attributes.size() / 16);  // setting is a scan
  auto space = std::make_unique<Namespace>();
  for (auto& [name, value] : attributes) space->set(name, std::move(value));
  namespaces_.push_back(std::move(space));
  return namespaces_.back().get();
}

// --- Statements ----------------------------------------------------------------------------------

Interpreter::Flow Interpreter::run_in(const std::shared_ptr<Scope>& scope, const Block& block) {
  const Swapped inner(scope_, scope);
  return run_block(block);
}

Interpreter::Flow Interpreter::run_block(const Block& block) {
  const Level level(budget_);
  for (const StmtPtr& statement : block) {
    budget_.step();
    const Flow flow = run(*statement);
    if (flow != Flow::normal) return flow;
  }
  return Flow::normal;
}

Interpreter::Flow Interpreter::run(const Stmt& node) {
  switch (node.kind) {
    case Stmt::Kind::data:
      out_->write(as<DataStmt>(node).text);
      break;
    case Stmt::Kind::print:
      write_text(*out_, evaluate(*as<PrintStmt>(node).value));
      break;
    case Stmt::Kind::set:
      run_set(as<SetStmt>(node));
      break;
    case Stmt::Kind::set_block:
      run_set_block(as<SetBlockStmt>(node));
      break;
    case Stmt::Kind::if_else:
      return run_if(as<IfStmt>(node));
    case Stmt::Kind::for_loop:
      return run_for(as<ForStmt>(node));
    case Stmt::Kind::macro:
      run_macro(as<MacroStmt>(node));
      break;
    case Stmt::Kind::call_block:
      run_call_block(as<CallBlockStmt>(node));
      break;
    case Stmt::Kind::filter_block:
      run_filter_block(as<FilterBlockStmt>(node));
      break;
    case Stmt::Kind::with:
      return run_with(as<WithStmt>(node));
    case Stmt::Kind::scope:
      return run_in(inner_scope(), as<ScopeStmt>(node).body);
    case Stmt::Kind::break_loop:
      return Flow::break_loop;
    case Stmt::Kind::continue_loop:
      return Flow::continue_loop;
  }
  return Flow::normal;
}

std::shared_ptr<Scope> Interpreter::inner_scope() const {
  return std::make_shared<Scope>(scope_);
}

Interpreter::Flow Interpreter::run_if(const IfStmt& node) {
  for (const auto& [condition, body] : node.branches)
    if (is_true(evaluate(*condition))) return run_block(body);
  return run_block(node.otherwise);
}

// The items to loop over, those that fail the loop's condition left out.
SequenceRef Interpreter::loop_items(const ForStmt& node) {
  const Value items = evaluate(*node.items);
  const SequenceRef* row = items.get<SequenceRef>();
  if (row && (*row)->kind != Sequence::Kind::generator && !node.condition) return *row;
  std::vector<Value> kept = items_of(items, budget_);
  if (node.condition) {
    std::erase_if(kept, [&](const Value& item) {
      const Swapped inner(scope_, inner_scope());
      assign(*scope_, node.target, item);
      return !is_true(evaluate(*node.condition));
    });
  }
  return *make_list(std::move(kept), budget_).get<SequenceRef>();
}

Interpreter::Flow Interpreter::run_for(const ForStmt& node) {
  const SequenceRef items = loop_items(node);
  bool completed = false;  // the reference's "else" asks for an iteration that reached its end
  std::shared_ptr<Scope> scope = inner_scope();
  for (size_t i = 0; i < items->items.size(); ++i) {
    budget_.step();
    if (scope.use_count() > 1) scope = inner_scope();  // a macro keeps the last one
    scope->clear();
    if (special_.loop)
      scope->set(*special_.loop, std::make_shared<const LoopState>(LoopState{items, i}));
    assign(*scope, node.target, items->items[i]);
    const Flow flow = run_in(scope, node.body);
    if (flow == Flow::break_loop) break;
    completed |= flow == Flow::normal;
  }
  if (completed || node.otherwise.empty()) return Flow::normal;
  return run_in(inner_scope(), node.otherwise);
}

void Interpreter::run_set(const SetStmt& node) {
  assign(*scope_, node.target, evaluate(*node.value));
}

TracedText Interpreter::capture(const std::shared_ptr<Scope>& scope, const Block& block) {
  TextWriter text(budget_);
  const Swapped<TextWriter*> redirect(out_, &text);
  run_in(scope, block);
  return text.take();
}

void Interpreter::run_set_block(const SetBlockStmt& node) {
  const std::shared_ptr<Scope> scope = inner_scope();
  Value text = capture(scope, node.body);
  if (node.filter) {
    const Swapped inner(scope_, scope);
    const Swapped<const Value*> input(block_text_, &text);
    text = Value(evaluate(*node.filter));
  }
  assign(*scope_, node.target, std::move(text));
}

void Interpreter::run_filter_block(const FilterBlockStmt& node) {
  const std::shared_ptr<Scope> scope = inner_scope();
  const Value text = capture(scope, node.body);
  const Swapped inner(scope_, scope);
  const Swapped<const Value*> input(block_text_, &text);
  write_text(*out_, evaluate(*node.filter));
}

Interpreter::Flow Interpreter::run_with(const WithStmt& node) {
  const std::shared_ptr<Scope> scope = inner_scope();
  for (const auto& [target, value] : node.variables) assign(*scope, target, evaluate(*value));
  return run_in(scope, node.body);
}

// --- Assignment ----------------------------------------------------------------------------------

void Interpreter::assign(Scope& scope, const Target& target, Value value) {
  switch (target.kind) {
    case Target::Kind::name:
      return scope.set(target.name, std::move(value));
    case Target::Kind::attribute:
      return assign_attribute(target, std::move(value));
    case Target::Kind::row:
      return assign_row(scope, target, value);
  }
}

void Interpreter::assign_row(Scope& scope, const Target& target, const Value& value) {
  const std::vector<Value> items = items_of(value, budget_);
  const size_t wanted = target.row.size();
  if (items.size() < wanted)
    raise("not enough values to unpack (expected {}, got {})", wanted, items.size());
  if (items.size() > wanted) raise("too many values to unpack (expected {})", wanted);
  for (size_t i = 0; i < wanted; ++i) assign(scope, target.row[i], items[i]);
}

void Interpreter::assign_attribute(const Target& target, Value value) {
  const Value object = look_up(target.name);
  if (!object.space()) raise("cannot assign attribute on non-namespace object");
  object.space()->set(target.attribute, std::move(value));
}

// --- Macros --------------------------------------------------------------------------------------

CallableRef Interpreter::make_macro(const MacroBody& macro) {
  if (kept_.empty() || kept_.back() != scope_) kept_.push_back(scope_);
  budget_.step();
  return std::make_shared<const Macro>(macro, scope_);
}

void Interpreter::run_macro(const MacroStmt& node) {
  scope_->set(node.name, make_macro(node.macro));
}

void Interpreter::run_call_block(const CallBlockStmt& node) {
  const Value caller = make_macro(node.caller);
  write_text(*out_, evaluate_call(as<CallExpr>(*node.call), &caller));
}

namespace {

// Takes the argument `name` out of `named`, if it is there.
std::optional<Value> take_named(std::vector<std::pair<std::string, Value>>& named,
                                std::string_view name) {
  for (auto at = named.begin(); at != named.end(); ++at) {
    if (at->first != name) continue;
    Value value = std::move(at->second);
    named.erase(at);
    return value;
  }
  return std::nullopt;
}

}  // namespace

Value Interpreter::call_macro(const MacroBody& macro, const std::shared_ptr<Scope>& outer,
                              const Arguments& arguments) {
  const Level level(budget_);
  const auto scope = std::make_shared<Scope>(outer);
  const Swapped inner(scope_, scope);
  bind(macro, arguments);
  TextWriter text(budget_);
  const Swapped<TextWriter*> redirect(out_, &text);
  run_block(macro.body);
  return text.take();
}

// Gives a macro's parameters their values in the current scope.
void Interpreter::bind(const MacroBody& macro, const Arguments& arguments) {
  auto named = arguments.named;
  const size_t given = std::min(arguments.positional.size(), macro.parameters.size());
  std::vector<const Parameter*> missing;
  for (size_t i = 0; i < macro.parameters.size(); ++i) {
    const Parameter& parameter = macro.parameters[i];
    std::optional<Value> value;
    if (i < given) value = arguments.positional[i];
    if (!value) value = take_named(named, program_.names[parameter.name]);
    if (value) {
      scope_->set(parameter.name, *std::move(value));
    } else {
      missing.push_back(&parameter);
    }
  }
  bind_special(macro, arguments, std::move(named));
  for (const Parameter* parameter : missing) set_standard(*parameter);
}

void Interpreter::set_standard(const Parameter& parameter) {
  const std::string& name = program_.names[parameter.name];
  Value value = parameter.standard
                    ? evaluate(*parameter.standard)
                    : Value::undefined(fmt::format("parameter '{}' was not provided", name));
  scope_->set(parameter.name, std::move(value));
}

// caller, kwargs and varargs, which exist in macros that read them; to others surplus arguments are
// an error.
void Interpreter::bind_special(const MacroBody& macro, const Arguments& arguments,
                               std::vector<std::pair<std::string, Value>> named) {
  if (macro.reads_caller) {
    std::optional<Value> caller = take_named(named, "caller");
    scope_->set(*special_.caller,
                caller ? *std::move(caller) : Value::undefined("No caller defined"));
  }
  if (macro.reads_kwargs) {
    std::vector<Dict::Entry> entries;
    for (auto& [name, value] : named) entries.emplace_back(Value::text(name), std::move(value));
    scope_->set(*special_.kwargs, Dict::make(std::move(entries), budget_));
  } else if (!named.empty()) {
    raise("macro '{}' takes no keyword argument '{}'", macro.name, named.front().first);
  }
  const size_t taken = std::min(arguments.positional.size(), macro.parameters.size());
  if (macro.reads_varargs) {
    const auto first = arguments.positional.begin() + static_cast<ptrdiff_t>(taken);
    scope_->set(*special_.varargs,
                make_sequence(Sequence::Kind::tuple, {first, arguments.positional.end()}, budget_));
  } else if (arguments.positional.size() > taken) {
    raise("macro '{}' takes not more than {} argument(s)", macro.name, macro.parameters.size());
  }
}

// --- Expressions ---------------------------------------------------------------------------------

Value Interpreter::look_up(NameId name) const {
  if (const Value* found = scope_->find(name)) return *found;
  if (context_[name]) return *context_[name];
  return Value::undefined(fmt::format("'{}' is undefined", program_.names[name]));
}

Value Interpreter::evaluate(const Expr& node) {
  budget_.step();
  if (node.kind == Expr::Kind::constant) return as<ConstantExpr>(node).value;
  if (node.kind == Expr::Kind::name) return look_up(as<NameExpr>(node).name);
  const Level level(budget_);
  return evaluate_compound(node);
}

Value Interpreter::evaluate_compound(const Expr& node) {
  switch (node.kind) {
    case Expr::Kind::constant:
    case Expr::Kind::name:
      break;  // see evaluate()
    case Expr::Kind::attribute:
      return get_attribute(evaluate(*as<AttributeExpr>(node).object), as<AttributeExpr>(node).name);
    case Expr::Kind::item: {
      const Value object = evaluate(*as<ItemExpr>(node).object);
      return get_item(object, evaluate(*as<ItemExpr>(node).index));
    }
    case Expr::Kind::slice:
      return evaluate_slice(as<SliceExpr>(node));
    case Expr::Kind::call:
      return evaluate_call(as<CallExpr>(node));
    case Expr::Kind::filter:
      return evaluate_filter(as<FilterExpr>(node));
    case Expr::Kind::test:
      return evaluate_test(as<TestExpr>(node));
    case Expr::Kind::negate:
      return negate(evaluate(*as<NegateExpr>(node).operand));
    case Expr::Kind::positive:
      return positive(evaluate(*as<PositiveExpr>(node).operand));
    case Expr::Kind::logical_not:
      return !is_true(evaluate(*as<NotExpr>(node).operand));
    case Expr::Kind::logical_and: {
      Value left = evaluate(*as<AndExpr>(node).left);
      return is_true(left) ? evaluate(*as<AndExpr>(node).right) : left;
    }
    case Expr::Kind::logical_or: {
      Value left = evaluate(*as<OrExpr>(node).left);
      return is_true(left) ? left : evaluate(*as<OrExpr>(node).right);
    }
    case Expr::Kind::arithmetic: {
      const Value left = evaluate(*as<ArithmeticExpr>(node).left);
      const Value right = evaluate(*as<ArithmeticExpr>(node).right);
      return calculate(as<ArithmeticExpr>(node).op, left, right, budget_);
    }
    case Expr::Kind::concat:
      return evaluate_concat(as<ConcatExpr>(node));
    case Expr::Kind::compare:
      return evaluate_compare(as<CompareExpr>(node));
    case Expr::Kind::conditional:
      return evaluate_conditional(as<ConditionalExpr>(node));
    case Expr::Kind::list:
      return evaluate_row(Sequence::Kind::list, as<ListExpr>(node).items);
    case Expr::Kind::tuple:
      return evaluate_row(Sequence::Kind::tuple, as<TupleExpr>(node).items);
    case Expr::Kind::dict:
      return evaluate_dict(as<DictExpr>(node));
  }
  return None{};
}

Value Interpreter::evaluate_slice(const SliceExpr& node) {
  const Value object = evaluate(*node.object);
  const auto part = [&](const ExprPtr& expr) { return expr ? evaluate(*expr) : Value(); };
  const Value start = part(node.start);
  const Value stop = part(node.stop);
  const Value step = part(node.step);
  return slice(object, &start, &stop, &step, budget_);
}

Arguments Interpreter::evaluate_arguments(const CallArguments& written) {
  Arguments arguments;
  for (const ExprPtr& item : written.positional) arguments.positional.push_back(evaluate(*item));
  for (const auto& [name, item] : written.named)
    arguments.named.emplace_back(name, evaluate(*item));
  if (written.more_positional) {
    for (Value& item : items_of(evaluate(*written.more_positional), budget_))
      arguments.positional.push_back(std::move(item));
  }
  if (written.more_named) {
    const Value more = evaluate(*written.more_named);
    if (!more.dict()) raise("argument after ** must be a mapping, not {}", type_name(more));
    for (const auto& [key, value] : more.dict()->entries()) {
      if (!key.text()) raise("keywords must be strings");
      arguments.named.emplace_back(key.text()->bytes(), value);
    }
  }
  return arguments;
}

Value Interpreter::evaluate_call(const CallExpr& node, const Value* caller) {
  const Value function = evaluate(*node.function);
  Arguments arguments = evaluate_arguments(node.arguments);
  if (caller) arguments.named.emplace_back("caller", *caller);
  require_defined(function);
  if (!function.callable()) raise("'{}' object is not callable", type_name(function));
  return function.callable()->call(*this, arguments);
}

Value Interpreter::evaluate_filter(const FilterExpr& node) {
  if (!node.builtin) raise("No filter named '{}' found.", node.name);
  const Value input = node.input ? evaluate(*node.input) : *block_text_;
  return apply(*this, *node.builtin, input, evaluate_arguments(node.arguments));
}

Value Interpreter::evaluate_test(const TestExpr& node) {
  if (!node.builtin) raise("No test named '{}' found.", node.name);
  const Value input = evaluate(*node.input);
  return apply(*this, *node.builtin, input, evaluate_arguments(node.arguments));
}

Value Interpreter::evaluate_concat(const ConcatExpr& node) {
  TextWriter text(budget_);
  for (const ExprPtr& part : node.parts) write_text(text, evaluate(*part));
  return text.take();
}

Value Interpreter::evaluate_compare(const CompareExpr& node) {
  Value left = evaluate(*node.first);
  for (const auto& [op, operand] : node.rest) {
    Value right = evaluate(*operand);
    if (!compare(op, left, right, budget_)) return false;
    left = std::move(right);
  }
  return true;
}

Value Interpreter::evaluate_conditional(const ConditionalExpr& node) {
  if (is_true(evaluate(*node.condition))) return evaluate(*node.value);
  if (node.otherwise) return evaluate(*node.otherwise);
  return Value::undefined(
      fmt::format("the inline if-expression on line {} evaluated to false and no else section was "
                  "defined.",
                  node.line));
}

Value Interpreter::evaluate_row(Sequence::Kind kind, const std::vector<ExprPtr>& parts) {
  std::vector<Value> items;
  items.reserve(parts.size());
  for (const ExprPtr& part : parts) items.push_back(evaluate(*part));
  return make_sequence(kind, std::move(items), budget_);
}

Value Interpreter::evaluate_dict(const DictExpr& node) {
  std::vector<Dict::Entry> entries;
  entries.reserve(node.entries.size());
  for (const auto& [key, value] : node.entries) {
    Value name = evaluate(*key);
    entries.emplace_back(std::move(name), evaluate(*value));
  }
  return Dict::make(std::move(entries), budget_);
}

}  // namespace m2::text::jinja
